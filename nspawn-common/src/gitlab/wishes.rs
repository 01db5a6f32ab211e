//! Wishes of a job beyond its image, its services and its scripts.

use serde_json::Value;

use crate::gitlab::services::Service;

/// Ends of the keys of caches that GitLab separates by the protection of branches. A job with
/// `cache:unprotect: true` has a key without such an end, and so have the jobs of a project that does
/// not separate its caches (GitLab's documentation, "Cache key names").
const SEPARATED: [&str; 2] = ["-protected", "-non_protected"];

/// Wishes of a job, some of which have no effect on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// True if the job has `cache:`.
    pub cache: bool,
    /// True if the job shares a cache with the jobs of all branches, protected or not.
    pub shared_cache: bool,
    /// True if an image of the job has `pull_policy: always`.
    pub pulls: bool,
    /// True if the job has `run:`, for which its script calls step-runner.
    pub functions: bool,
    /// Names of images that contain a digest.
    pub digests: Vec<String>,
    /// `docker:platform` of images, each platform once.
    pub platforms: Vec<String>,
}

impl Wishes {
    /// Reads the wishes of a job response.
    pub(super) fn from_response(
        response: &Value,
        image_name: Option<&str>,
        services: &[Service],
    ) -> Self {
        let images = || std::iter::once(&response["image"]).chain(list(&response["services"]));
        let names = image_name
            .into_iter()
            .chain(services.iter().map(|service| &*service.image));
        let mut platforms: Vec<String> = images().filter_map(platform).collect();
        platforms.sort();
        platforms.dedup();
        Self {
            cache: list(&response["cache"]).next().is_some(),
            shared_cache: list(&response["cache"]).any(is_shared),
            pulls: images().any(is_always_pulled),
            functions: list(&response["run"]).next().is_some(),
            digests: names
                .filter(|name| name.contains('@'))
                .map(str::to_owned)
                .collect(),
            platforms,
        }
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn is_shared(cache: &Value) -> bool {
    let key = cache["key"].as_str().unwrap_or_default();
    !SEPARATED.iter().any(|end| key.ends_with(end))
}

fn is_always_pulled(image: &Value) -> bool {
    list(&image["pull_policy"]).any(|policy| policy == "always")
}

fn platform(image: &Value) -> Option<String> {
    let platform = image["executor_opts"]["docker"]["platform"].as_str()?;
    (!platform.is_empty()).then(|| platform.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn wishes_are_those_of_the_image_and_of_all_services() {
        let arm = json!({ "docker": { "platform": "linux/arm64" } });
        let response = json!({
            "image": { "name": "a@sha256:0", "executor_opts": arm },
            "services": [{ "name": "b", "pull_policy": ["never", "always"], "executor_opts": arm }],
            "cache": [{ "key": "x-protected" }, { "key": "x" }],
            "run": [{ "name": "one" }],
        });
        assert_eq!(
            Wishes::from_response(&response, Some("a@sha256:0"), &[]),
            Wishes {
                cache: true,
                shared_cache: true,
                pulls: true,
                functions: true,
                digests: vec!["a@sha256:0".to_owned()],
                platforms: vec!["linux/arm64".to_owned()],
            }
        );
    }

    #[test]
    fn plain_job_has_no_wishes() {
        let response = json!({
            "image": { "name": "a", "pull_policy": null, "executor_opts": {} },
            "services": [], "cache": [], "run": "",
        });
        let wishes = Wishes::from_response(&response, Some("a"), &[]);
        assert_eq!(wishes, Wishes::default());
        let separated = json!({ "cache": [{ "key": "x-non_protected" }] });
        assert!(!Wishes::from_response(&separated, None, &[]).shared_cache);
    }
}
