//! What GitLab Runner tells a custom executor, and which of it can be believed.
//!
//! Facts: GitLab Runner's documentation of the custom executor, and its source
//! (`executors/custom/`, version 19.4).

pub mod job;
pub mod log_section;
pub mod services;
pub mod variables;

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::error::Fault;
use anyhow::{Context, Result};

pub use job::Job;
pub use log_section::show_log;
pub use services::Service;

/// Whether GitLab Runner called this program.
#[must_use]
pub fn is_active() -> bool {
    env::var_os("CUSTOM_ENV_CI_JOB_ID").is_some()
}

/// The value of a variable of the job, which the job is free to set; an empty one is none.
#[must_use]
pub fn variable(name: &str) -> Option<String> {
    env::var(format!("CUSTOM_ENV_{name}"))
        .ok()
        .filter(|value| !value.is_empty())
}

/// Exit statuses that classify a failure for GitLab Runner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitCodes {
    /// Status of a failure that the job caused. GitLab does not retry the job.
    pub build: u8,
    /// Status of a failure that the host caused. GitLab may retry the job.
    pub system: u8,
}

impl ExitCodes {
    /// Returns the statuses that GitLab Runner passes in the environment.
    ///
    /// A missing variable gets the runner's own default, 1 or 2.
    pub fn from_env() -> Self {
        let code = |variable: &str| env::var(variable).ok()?.parse().ok();
        Self {
            build: code("BUILD_FAILURE_EXIT_CODE").unwrap_or(1),
            system: code("SYSTEM_FAILURE_EXIT_CODE").unwrap_or(2),
        }
    }

    /// Returns the status for a failure of this kind.
    pub fn code(self, fault: Fault) -> u8 {
        match fault {
            Fault::Job => self.build,
            Fault::Host | Fault::Interrupted(_) => self.system,
        }
    }

    /// Returns the fault behind the exit status `code` of one of these programs.
    pub fn fault(self, code: Option<i32>) -> Fault {
        if code == Some(self.build.into()) {
            Fault::Job
        } else {
            Fault::Host
        }
    }
}

/// Where the runner reads the script's own exit code (GitLab Runner 17.9 and newer).
#[must_use]
pub fn exit_code_file() -> Option<PathBuf> {
    env::var_os("BUILD_EXIT_CODE_FILE")
        .filter(|path: &OsString| !path.is_empty())
        .map(PathBuf::from)
}

/// Writes the script's exit code for the runner; `None` removes what an earlier stage left, since
/// the runner never does.
///
/// # Errors
/// The file system's.
pub fn store_exit_code(path: &Path, code: Option<u8>) -> Result<()> {
    let done = match code {
        Some(code) => fs::write(path, code.to_string()),
        None => fs::remove_file(path).or_else(|error| match error.kind() {
            ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        }),
    };
    done.with_context(|| format!("can't write $BUILD_EXIT_CODE_FILE {}", path.display()))
}
