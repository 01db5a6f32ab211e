//! A process that a machine is there for, and that it does not outlive.

use std::fmt;
use std::fs;

use anyhow::{Context, Result};

/// A process, told from a later one of the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessId {
    pid: u32,
    /// When it was started, in clock ticks since the boot (proc_pid_stat(5), field 22).
    started: u64,
}

impl ProcessId {
    /// The process of this number.
    ///
    /// # Errors
    /// There is none.
    pub fn from_pid(pid: u32) -> Result<Self> {
        let started = started(pid).with_context(|| format!("there is no process {pid}"))?;
        Ok(Self { pid, started })
    }

    /// Reads what was written.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> Result<Self> {
        let (pid, started) = text
            .split_once(' ')
            .with_context(|| format!("{text:?} is no process"))?;
        Ok(Self {
            pid: pid.parse()?,
            started: started.parse()?,
        })
    }

    /// Whether it is still there.
    #[must_use]
    pub fn is_alive(self) -> bool {
        started(self.pid) == Some(self.started)
    }
}

impl fmt::Display for ProcessId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {}", self.pid, self.started)
    }
}

fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Behind the name, which may hold anything, comes field 3, the state.
    let mut fields = stat.rsplit(')').next()?.split_whitespace();
    let state = fields.next()?;
    fields
        .nth(18)?
        .parse()
        .ok()
        .filter(|_| !["Z", "X"].contains(&state))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_is_known_until_it_ends() {
        let own = ProcessId::from_pid(std::process::id()).unwrap();
        assert!(own.is_alive());
        assert_eq!(ProcessId::parse(&own.to_string()).unwrap(), own);
        assert!(
            !ProcessId {
                started: own.started + 1,
                ..own
            }
            .is_alive()
        );
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let other = ProcessId::from_pid(child.id()).unwrap();
        assert!(other.is_alive());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!other.is_alive());
        for bad in ["", "1", "x 1", "1 x"] {
            assert!(ProcessId::parse(bad).is_err(), "{bad}");
        }
    }
}
