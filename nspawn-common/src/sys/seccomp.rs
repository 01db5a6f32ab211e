//! Filters of system calls (seccomp(2)).
#![allow(unsafe_code)]

use anyhow::Result;
use nix::errno::Errno;
use nix::libc::{self, sock_filter, sock_fprog};

/// Installs a filter for this process and its future children.
pub fn install(instructions: &mut [sock_filter]) -> Result<()> {
    let program = sock_fprog {
        len: u16::try_from(instructions.len())?,
        filter: instructions.as_mut_ptr(),
    };
    // SAFETY: seccomp(2) reads `program` and its instructions, which are valid until it returns.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            std::ptr::from_ref(&program),
        )
    };
    Errno::result(result)?;
    Ok(())
}
