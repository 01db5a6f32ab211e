//! Output of the config stage of GitLab Runner's custom executor.

use anyhow::Result;
use nspawn_common::gitlab::Job;
use nspawn_common::machine::name::MachineName;

use crate::gitlab::cache;

/// Returns the configuration as JSON (docs.gitlab.com, "The Custom executor", config stage).
pub fn config(job: Option<&Job>) -> Result<String> {
    let hostname = job.map(Job::machine_name).transpose()?;
    let config = serde_json::json!({
        "driver": { "name": "nspawn-ci", "version": env!("CARGO_PKG_VERSION") },
        "hostname": hostname.as_ref().map_or("", MachineName::as_str),
        "builds_dir": "/builds",
        "cache_dir": cache::IN_MACHINE,
        "builds_dir_is_shared": false,
    });
    Ok(config.to_string())
}
