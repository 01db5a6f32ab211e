//! Pipes.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

mod ioctl {
    nix::ioctl_read_bad!(fionread, nix::libc::FIONREAD, nix::libc::c_int);
}

/// Returns the number of bytes that can be read from a pipe without waiting.
pub fn readable_bytes(pipe: impl AsFd) -> io::Result<usize> {
    let mut count = 0;
    // SAFETY: FIONREAD writes one int.
    unsafe { ioctl::fionread(pipe.as_fd().as_raw_fd(), &raw mut count) }?;
    Ok(usize::try_from(count).unwrap_or(0))
}
