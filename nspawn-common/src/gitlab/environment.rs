//! Environment in which GitLab Runner calls a custom executor.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::error::Fault;
use crate::sys::fs::ignore_missing;

/// Returns whether GitLab Runner called this program.
pub fn is_active() -> bool {
    env::var_os("CUSTOM_ENV_CI_JOB_ID").is_some()
}

/// Returns a variable of the job, unless it is unset or empty. The job may set it to anything.
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

    /// Returns the status of a failure with this fault.
    pub fn code(self, fault: Fault) -> u8 {
        match fault {
            Fault::Job => self.build,
            Fault::Host | Fault::Interrupted(_) => self.system,
        }
    }

    /// Returns the fault behind the exit status of one of these programs.
    pub fn fault(self, code: Option<i32>) -> Fault {
        if code == Some(self.build.into()) {
            Fault::Job
        } else {
            Fault::Host
        }
    }
}

/// Returns the file from which the runner reads the exit code of the job's script.
///
/// GitLab Runner has this file since version 17.9.
pub fn exit_code_file() -> Option<PathBuf> {
    env::var_os("BUILD_EXIT_CODE_FILE")
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
}

/// Writes the exit code of the job's script for the runner.
///
/// `None` removes the exit code of an earlier stage, since the runner never does.
pub fn store_exit_code(path: &Path, code: Option<u8>) -> Result<()> {
    match code {
        Some(code) => fs::write(path, code.to_string()),
        None => ignore_missing(fs::remove_file(path)),
    }
    .with_context(|| format!("can't write $BUILD_EXIT_CODE_FILE {}", path.display()))
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::Signal;

    use super::*;

    #[test]
    fn fault_survives_the_exit_status() {
        let codes = ExitCodes {
            build: 1,
            system: 2,
        };
        for fault in [Fault::Job, Fault::Host] {
            assert_eq!(codes.fault(Some(codes.code(fault).into())), fault);
        }
        assert_eq!(codes.code(Fault::Interrupted(Signal::SIGTERM)), 2);
        assert_eq!(codes.fault(None), Fault::Host);
    }

    #[test]
    fn exit_code_is_removed_also_if_it_is_missing() {
        let path = std::env::temp_dir().join(format!("nspawn-exit-code-{}", std::process::id()));
        store_exit_code(&path, Some(3)).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"3");
        store_exit_code(&path, None).unwrap();
        store_exit_code(&path, None).unwrap();
        assert!(!path.exists());
    }
}
