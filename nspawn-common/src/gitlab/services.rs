//! The `services:` of a job.

use serde_json::Value;

use crate::gitlab::variables::Variables;

/// Where a service says which port it is ready on (GitLab's documentation, "Services").
const PORT_VARIABLE: &str = "HEALTHCHECK_TCP_PORT";

/// One of a job's `services:`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The image that it asks for; empty where it names none.
    pub image: String,
    /// The names that the job reaches it by.
    pub aliases: Vec<String>,
    /// What runs its command, where it says so.
    pub entrypoint: Vec<String>,
    /// What it is to run, where it says so.
    pub command: Vec<String>,
    /// Whom it is to run it as.
    pub user: Option<String>,
    /// `NAME=VALUE` of its variables and of the job's.
    pub environment: Vec<String>,
    /// The TCP port that it is ready on, where it says so.
    pub port: Option<u16>,
}

impl Service {
    /// Reads it from a job response, or from `CI_JOB_SERVICES`.
    pub(super) fn new(service: &Value, of_job: &Variables) -> Self {
        let own = match &service["variables"] {
            list @ Value::Array(_) => Variables::of_response(list),
            object => Variables::of_object(object),
        };
        let image = of_job.expand(service["name"].as_str().unwrap_or_default());
        let environment = of_job.told_with(&own);
        let port = environment
            .iter()
            .rev()
            .find_map(|entry| entry.strip_prefix(PORT_VARIABLE)?.strip_prefix('='));
        Self {
            aliases: aliases(&image, service["alias"].as_str().unwrap_or_default()),
            entrypoint: words(&service["entrypoint"]),
            command: words(&service["command"]),
            user: user_of(service).map(|user| of_job.expand(&user)),
            port: port.and_then(|port| port.parse().ok()),
            image,
            environment,
        }
    }
}

/// The words of an `entrypoint` or a `command`; an empty one alone is how none is written.
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

/// `docker:user` of an image or a service.
pub fn user_of(image: &Value) -> Option<String> {
    image["executor_opts"]["docker"]["user"]
        .as_str()
        .filter(|user| !user.is_empty())
        .map(str::to_owned)
}

// Its image's name without port and tag, `/` written in both ways that host names have, and those that it is given,
// between spaces or commas (GitLab's documentation, "Services"). No other text gets into a machine's hosts(5).
fn aliases(image: &str, given: &str) -> Vec<String> {
    let (host, path) = image.split_once('/').unwrap_or(("", image));
    let host = host.split(':').next().unwrap_or_default();
    let path = path.split(['@', ':']).next().unwrap_or_default();
    let name = if host.is_empty() {
        path.to_owned()
    } else {
        format!("{host}/{path}")
    };
    let given = given.split([' ', ',', '\t']).map(str::to_owned);
    let mut aliases: Vec<String> = Vec::new();
    for alias in [name.replace('/', "__"), name.replace('/', "-")]
        .into_iter()
        .chain(given)
    {
        if is_host_name(&alias) && !aliases.contains(&alias) {
            aliases.push(alias);
        }
    }
    aliases
}

fn is_host_name(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    !name.is_empty()
        && name.len() < 254
        && name.bytes().all(is_allowed)
        && name.bytes().any(|byte| byte != b'.')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_are_those_that_gitlab_gives() {
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
    fn a_service_is_read_from_either_source() {
        let response = json!({
            "name": "$REGISTRY/db", "alias": "pg", "entrypoint": ["/run"], "command": ["--save", ""],
            "variables": [{ "key": "HEALTHCHECK_TCP_PORT", "value": "54", "public": true }],
            "executor_opts": { "docker": { "user": "postgres" } },
        });
        let job = Variables::of_response(
            &json!([{ "key": "REGISTRY", "value": "r.example", "public": true }]),
        );
        let service = Service::new(&response, &job);
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
        let service = Service::new(&old, &Variables::default());
        assert_eq!(
            (service.entrypoint, service.environment),
            (Vec::<String>::new(), vec!["A=1".to_owned()])
        );
        assert_eq!(Service::new(&json!({}), &Variables::default()).image, "");
    }
}
