//! Sections of a job's log, which GitLab folds. A mark begins and ends each of them
//! (`helpers/build_section.go` and `common/build.go` in GitLab Runner).

use std::time::{SystemTime, UNIX_EPOCH};

/// Section of config and prepare.
pub const PREPARE: &str = "prepare_executor";

/// Returns the mark and the heading with which the section of a stage begins.
pub fn begin(stage: &str) -> String {
    format!(
        "{}\x1b[0K\x1b[36;1m{}\x1b[0;m\n",
        mark("start", stage),
        heading(stage)
    )
}

/// Returns the mark with which the section of a stage ends.
pub fn end(stage: &str) -> String {
    mark("end", stage)
}

fn mark(kind: &str, stage: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let seconds = now.map_or(0, |since| since.as_secs());
    format!("section_{kind}:{seconds}:{}\r\x1b[0K", name(stage))
}

/// Returns the name of a stage in a log. Drivers get an older name of the script.
fn name(stage: &str) -> &str {
    match stage {
        "build_script" => "step_script",
        other => other,
    }
}

fn heading(stage: &str) -> String {
    let text = match stage {
        PREPARE => "Preparing the \"custom\" executor",
        "prepare_script" => "Preparing environment",
        "get_sources" => "Getting source from Git repository",
        "clear_worktree" => "Deleting all tracked and untracked files due to source fetch failure",
        "restore_cache" => "Restoring cache",
        "download_artifacts" => "Downloading artifacts",
        "after_script" => "Running after_script",
        "archive_cache" => "Saving cache for successful job",
        "archive_cache_on_failure" => "Saving cache for failed job",
        "upload_artifacts_on_success" => "Uploading artifacts for successful job",
        "upload_artifacts_on_failure" => "Uploading artifacts for failed job",
        "cleanup_file_variables" => "Cleaning up project directory and file based variables",
        other => return format!("Executing {:?} stage of the job script", name(other)),
    };
    text.to_owned()
}
