//! Unix sockets that carry descriptors (unix(7)).
#![allow(unsafe_code)]

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result};
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
