//! Credentials of processes (credentials(7), capabilities(7)).
#![allow(unsafe_code)]

use std::fs::{self, File};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::set_keepcaps;
use nix::unistd::{Gid, Uid, setresgid, setresuid};

/// Effective user, group and capabilities of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    user: u32,
    group: u32,
    capabilities: u64,
}

impl Credentials {
    /// Returns the credentials of a thread.
    pub fn of(thread: u32) -> Result<Self> {
        let path = format!("/proc/{thread}/status");
        let status = fs::read_to_string(&path).with_context(|| format!("can't read {path}"))?;
        Self::parse(&status).with_context(|| format!("can't parse {path}"))
    }

    // proc_pid_status(5). The second number of each line of IDs is the effective one.
    fn parse(status: &str) -> Option<Self> {
        let words = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.split_whitespace())
        };
        Some(Self {
            user: words("Uid:")?.nth(1)?.parse().ok()?,
            group: words("Gid:")?.nth(1)?.parse().ok()?,
            capabilities: u64::from_str_radix(words("CapEff:")?.next()?, 16).ok()?,
        })
    }

    /// Gives these credentials to this process, which is root with all capabilities, and enters the
    /// user namespace `users`, if any.
    ///
    /// Supplementary groups stay.
    pub fn adopt(self, users: Option<&File>) -> Result<()> {
        let all = Self::of(std::process::id())?.capabilities;
        let (user, group) = (Uid::from_raw(self.user), Gid::from_raw(self.group));
        setresgid(group, group, group)?;
        set_keepcaps(true)?;
        setresuid(user, user, user)?;
        if let Some(users) = users {
            // The change of the user has cleared the effective capabilities.
            set_capabilities(all)?;
            setns(users, CloneFlags::CLONE_NEWUSER)?;
        }
        Ok(set_capabilities(self.capabilities)?)
    }
}

/// Lets this process and its children change their user without a loss of capabilities.
///
/// The kernel resets this in a new user namespace.
pub fn keep_capabilities() -> nix::Result<()> {
    // SAFETY: this call takes a number, and reads no memory.
    let result = unsafe { libc::prctl(libc::PR_SET_SECUREBITS, libc::SECBIT_NO_SETUID_FIXUP) };
    Errno::result(result).map(drop)
}

/// Sets the effective and permitted capabilities of this process, a set of bits.
fn set_capabilities(capabilities: u64) -> nix::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    // _LINUX_CAPABILITY_VERSION_3 of linux/capability.h
    let header = Header {
        version: 0x2008_0522,
        pid: 0,
    };
    let data = [capabilities as u32, (capabilities >> 32) as u32].map(|bits| Data {
        effective: bits,
        permitted: bits,
        inheritable: 0,
    });
    // SAFETY: capset(2) reads a header and, in this version, two structures of these types.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) };
    Errno::result(result).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn effective_credentials_are_parsed() {
        let status = "Name:\tx\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nCapPrm:\tff\nCapEff:\t000001ffffffffff\n";
        let expected = Credentials {
            user: 2,
            group: 6,
            capabilities: 0x1ff_ffff_ffff,
        };
        assert_eq!(Credentials::parse(status), Some(expected));
        for line in status
            .lines()
            .filter(|line| !line.starts_with("Name") && !line.starts_with("CapP"))
        {
            assert_eq!(Credentials::parse(&status.replace(line, "")), None);
        }
        assert!(Credentials::of(std::process::id()).is_ok());
    }
}
