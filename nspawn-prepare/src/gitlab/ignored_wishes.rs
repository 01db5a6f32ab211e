//! Lines for the job's log about wishes of a job that have no effect.

use nspawn_common::gitlab::Job;

use crate::create::spec::MachineSpec;

/// The platform of this host's own programs, as container tools call it.
const PLATFORM: &str = if cfg!(target_arch = "aarch64") {
    "linux/arm64"
} else {
    "linux/amd64"
};

/// Returns one line for each wish of the job that has no effect in its machine.
pub fn describe(job: &Job, machine: &MachineSpec) -> Vec<String> {
    let wishes = &job.wishes;
    let requirements = &machine.job;
    let mut lines = Vec::new();
    if wishes.cache && requirements.cache_size > 0 && requirements.cache.is_none() {
        lines.push(
            "cache: has no effect, because the job response does not tell whether the branch is protected"
                .to_owned(),
        );
    }
    if wishes.shared_cache && requirements.cache.is_some() {
        lines.push(
            "cache: is not shared with protected branches by jobs of other branches on this host, \
             whatever cache:unprotect says"
                .to_owned(),
        );
    }
    if wishes.pulls {
        lines.push(
            "pull_policy: always has no effect, because this host updates its images itself"
                .to_owned(),
        );
    }
    for name in &wishes.digests {
        lines.push(format!(
            "the digest in {name:?} has no effect: this host's image of that name is used"
        ));
    }
    for platform in wishes
        .platforms
        .iter()
        .filter(|platform| *platform != PLATFORM)
    {
        lines.push(format!(
            "docker:platform {platform:?} has no effect: the images of this host are used as they are"
        ));
    }
    lines
}
