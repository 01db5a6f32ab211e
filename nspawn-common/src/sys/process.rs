//! Processes, as /proc describes them.

use std::fmt;
use std::fs;

use anyhow::{Context, Result};

/// Identity of a process. It differs from that of a later process with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessId {
    pid: u32,
    /// Start time in clock ticks since the boot.
    start_time: u64,
}

impl ProcessId {
    /// Returns the identity of the running process `pid`.
    pub fn from_pid(pid: u32) -> Result<Self> {
        let stat = Stat::read(pid)
            .filter(Stat::is_running)
            .with_context(|| format!("there is no process {pid}"))?;
        Ok(Self {
            pid,
            start_time: stat.start_time,
        })
    }

    /// Parses the output of `Display`.
    pub fn parse(text: &str) -> Result<Self> {
        let (pid, start_time) = text
            .split_once(' ')
            .with_context(|| format!("{text:?} is not the identity of a process"))?;
        Ok(Self {
            pid: pid.parse()?,
            start_time: start_time.parse()?,
        })
    }

    /// Returns whether the process still runs.
    pub fn is_alive(self) -> bool {
        Stat::read(self.pid)
            .is_some_and(|stat| stat.is_running() && stat.start_time == self.start_time)
    }
}

impl fmt::Display for ProcessId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {}", self.pid, self.start_time)
    }
}

/// Returns whether process `pid` runs. A zombie does not.
pub fn is_running(pid: u32) -> bool {
    Stat::read(pid).is_some_and(|stat| stat.is_running())
}

/// Returns the parent of process `pid`.
pub fn parent(pid: u32) -> Option<u32> {
    Stat::read(pid).map(|stat| stat.parent)
}

/// Fields of /proc/PID/stat (proc_pid_stat(5)).
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    /// Field 3.
    state: u8,
    /// Field 4.
    parent: u32,
    /// Field 22.
    start_time: u64,
}

impl Stat {
    fn read(pid: u32) -> Option<Self> {
        Self::parse(&fs::read(format!("/proc/{pid}/stat")).ok()?)
    }

    // Field 2, the program's name in parentheses, may contain any byte, also blanks and
    // parentheses. So the other fields are counted from the last parenthesis.
    fn parse(text: &[u8]) -> Option<Self> {
        let fields = text.rsplit(|byte| *byte == b')').next()?;
        let mut fields = std::str::from_utf8(fields).ok()?.split_ascii_whitespace();
        Some(Self {
            state: *fields.next()?.as_bytes().first()?,
            parent: fields.next()?.parse().ok()?,
            start_time: fields.nth(17)?.parse().ok()?,
        })
    }

    // Returns whether the process is neither a zombie nor dead.
    fn is_running(&self) -> bool {
        !matches!(self.state, b'Z' | b'X')
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn process_is_alive_until_it_ends() {
        let this = ProcessId::from_pid(std::process::id()).unwrap();
        assert!(this.is_alive());
        assert_eq!(ProcessId::parse(&this.to_string()).unwrap(), this);
        let later = ProcessId {
            start_time: this.start_time + 1,
            ..this
        };
        assert!(!later.is_alive());
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let id = ProcessId::from_pid(child.id()).unwrap();
        assert!(id.is_alive() && is_running(child.id()));
        assert_eq!(parent(child.id()), Some(std::process::id()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!id.is_alive() && !is_running(child.id()));
    }

    #[test]
    fn malformed_identities_are_refused() {
        for bad in ["", "1", "x 1", "1 x"] {
            assert!(ProcessId::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn any_program_name_is_skipped() {
        let text = b"7 (a) R 1 \xff) S 5 7 7 0 -1 0 1 2 3 4 5 6 7 8 20 0 1 0 4711 9 9\n";
        let expected = Stat {
            state: b'S',
            parent: 5,
            start_time: 4711,
        };
        assert_eq!(Stat::parse(text), Some(expected));
        assert_eq!(Stat::parse(b""), None);
    }
}
