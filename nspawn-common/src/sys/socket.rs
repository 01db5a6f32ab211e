//! Sockets that nix does not cover: those that carry descriptors (unix(7)), and those of any family.
#![allow(unsafe_code)]

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

/// Fills `buffer` and returns the number of bytes, with up to three descriptors that come along.
///
/// Fails if the peer sends more descriptors. The number of bytes is smaller than the buffer only at
/// the end of the stream.
pub fn receive(stream: &UnixStream, buffer: &mut [u8]) -> Result<(usize, Vec<OwnedFd>)> {
    let mut space = nix::cmsg_space!([RawFd; 3]);
    let mut parts = [IoSliceMut::new(buffer)];
    let message = recvmsg::<()>(
        stream.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_WAITALL,
    )
    .context("can't receive a message")?;
    let mut descriptors = Vec::new();
    let controls = message
        .cmsgs()
        .context("a message has too many descriptors")?;
    for control in controls {
        if let ControlMessageOwned::ScmRights(received) = control {
            // SAFETY: the kernel has just created these descriptors, so nothing else owns them.
            let owned = received
                .into_iter()
                .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
            descriptors.extend(owned);
        }
    }
    Ok((message.bytes, descriptors))
}

/// Creates a socket of this family, type and protocol, which may be any numbers (socket(2)).
pub fn create([family, kind, protocol]: [i32; 3]) -> nix::Result<OwnedFd> {
    // SAFETY: socket(2) takes three integers.
    let fd = Errno::result(unsafe { libc::socket(family, kind, protocol) })?;
    // SAFETY: the kernel has just created this descriptor, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Creates two connected sockets of this family, type and protocol, which may be any numbers
/// (socketpair(2)).
pub fn create_pair([family, kind, protocol]: [i32; 3]) -> nix::Result<[OwnedFd; 2]> {
    let mut pair = [-1; 2];
    // SAFETY: socketpair(2) writes two integers.
    Errno::result(unsafe { libc::socketpair(family, kind, protocol, pair.as_mut_ptr()) })?;
    // SAFETY: the kernel has just created these descriptors, so nothing else owns them.
    Ok(pair.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }))
}
