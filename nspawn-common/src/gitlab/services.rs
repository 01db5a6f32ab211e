//! `services:` of a job.

use serde_json::Value;

use crate::gitlab::variables::Variables;

/// Variable with the port on which a service is ready (GitLab's documentation, "Services").
const PORT_VARIABLE: &str = "HEALTHCHECK_TCP_PORT";
/// Maximum length of a host name, in bytes.
const MAX_HOST_NAME: usize = 253;

/// Service of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Name of the image, or empty if the job gives none.
    pub image: String,
    /// Host names under which the job reaches the service.
    pub aliases: Vec<String>,
    /// Program that runs the command, with arguments. Empty if the job gives none.
    pub entrypoint: Vec<String>,
    /// Command of the service. Empty if the job gives none.
    pub command: Vec<String>,
    /// User that runs the command.
    pub user: Option<String>,
    /// Variables of the job and of the service, as `NAME=VALUE`.
    pub environment: Vec<String>,
    /// TCP port on which the service is ready.
    pub port: Option<u16>,
}

impl Service {
    /// Reads a service of a job response, or of `CI_JOB_SERVICES`.
    pub(super) fn from_json(service: &Value, job_variables: &Variables) -> Self {
        let variables = match &service["variables"] {
            list @ Value::Array(_) => Variables::from_list(list),
            object => Variables::from_object(object),
        };
        let image = job_variables.expand(service["name"].as_str().unwrap_or_default());
        let environment = job_variables.environment_with(&variables);
        Self {
            aliases: aliases(&image, service["alias"].as_str().unwrap_or_default()),
            entrypoint: words(&service["entrypoint"]),
            command: words(&service["command"]),
            user: user_of(service).map(|user| job_variables.expand(&user)),
            port: port(&environment),
            image,
            environment,
        }
    }
}

// Returns the port that the last entry of its variable gives.
fn port(environment: &[String]) -> Option<u16> {
    let value = environment
        .iter()
        .rev()
        .find_map(|entry| entry.strip_prefix(PORT_VARIABLE)?.strip_prefix('='));
    value?.parse().ok()
}

/// Returns the words of an `entrypoint` or a `command`. A single empty word means none.
pub fn words(list: &Value) -> Vec<String> {
    let words: Vec<_> = list
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    if words == [""] { Vec::new() } else { words }
}

/// Returns `docker:user` of an image or a service.
pub fn user_of(image: &Value) -> Option<String> {
    image["executor_opts"]["docker"]["user"]
        .as_str()
        .filter(|user| !user.is_empty())
        .map(str::to_owned)
}

// Returns the host names of a service: two made of its image's name, in which `__` or `-` replaces
// each `/`, and those that the job gives, separated by blanks or commas (GitLab's documentation,
// "Services"). Only valid host names are returned, since they are written to hosts(5) of a machine.
fn aliases(image: &str, given: &str) -> Vec<String> {
    let (host, path) = image.split_once('/').unwrap_or(("", image));
    let host = host.split(':').next().unwrap_or_default();
    let path = path.split(['@', ':']).next().unwrap_or_default();
    let name = if host.is_empty() {
        path.to_owned()
    } else {
        format!("{host}/{path}")
    };
    let of_image = [name.replace('/', "__"), name.replace('/', "-")];
    let given = given.split([' ', ',', '\t']).map(str::to_owned);
    let mut aliases: Vec<String> = Vec::new();
    for alias in of_image.into_iter().chain(given) {
        if is_host_name(&alias) && !aliases.contains(&alias) {
            aliases.push(alias);
        }
    }
    aliases
}

fn is_host_name(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    !name.is_empty()
        && name.len() <= MAX_HOST_NAME
        && name.bytes().all(is_allowed)
        && name.bytes().any(|byte| byte != b'.')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn aliases_follow_gitlabs_rules() {
        for (image, given, expected) in [
            ("redis", "", vec!["redis"]),
            ("redis:7@sha256:0", "cache", vec!["redis", "cache"]),
            (
                "tutum/wordpress:latest",
                "",
                vec!["tutum__wordpress", "tutum-wordpress"],
            ),
            (
                "a.example:5000/x/db:1",
                "db,pg  sql",
                vec!["a.example__x__db", "a.example-x-db", "db", "pg", "sql"],
            ),
            ("db", "db x#y 1.2.3.4\\n .. ok_1", vec!["db", "ok_1"]),
        ] {
            assert_eq!(aliases(image, given), expected);
        }
    }

    #[test]
    fn service_is_read_from_response_and_from_variable() {
        let response = json!({
            "name": "$REGISTRY/db", "alias": "pg", "entrypoint": ["/run"], "command": ["--save", ""],
            "variables": [{ "key": "HEALTHCHECK_TCP_PORT", "value": "54", "public": true }],
            "executor_opts": { "docker": { "user": "postgres" } },
        });
        let job = Variables::from_list(
            &json!([{ "key": "REGISTRY", "value": "r.example", "public": true }]),
        );
        let service = Service::from_json(&response, &job);
        assert_eq!((&*service.image, service.port), ("r.example/db", Some(54)));
        assert_eq!(
            (&*service.entrypoint, &*service.command),
            (
                &["/run".to_owned()][..],
                &["--save".into(), String::new()][..]
            )
        );
        assert_eq!(service.user.as_deref(), Some("postgres"));
        assert_eq!(
            service.environment,
            ["REGISTRY=r.example", "HEALTHCHECK_TCP_PORT=54"]
        );
        let old = json!({ "name": "db", "alias": "", "entrypoint": [""], "command": null, "variables": { "A": "1" } });
        let service = Service::from_json(&old, &Variables::default());
        assert_eq!(
            (service.entrypoint, service.environment),
            (Vec::<String>::new(), vec!["A=1".to_owned()])
        );
        assert_eq!(
            Service::from_json(&json!({}), &Variables::default()).image,
            ""
        );
    }
}
