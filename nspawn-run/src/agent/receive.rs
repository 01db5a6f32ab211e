//! The first message on a connection, with the descriptors that the host sends along.
#![allow(unsafe_code)]

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, bail};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nspawn_common::agent::protocol;

/// Header of a message, with its descriptors.
pub struct Header {
    pub tag: u8,
    /// Length of the body, in bytes.
    pub length: usize,
    pub fds: Vec<OwnedFd>,
}

/// Receives the header of the first message.
pub fn receive_header(stream: &UnixStream) -> Result<Header> {
    let mut bytes = [0; protocol::HEADER];
    let mut control_buffer = nix::cmsg_space!([RawFd; 3]);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let message = recvmsg::<()>(
        stream.as_raw_fd(),
        &mut parts,
        Some(&mut control_buffer),
        MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_WAITALL,
    )
    .context("can't read the request")?;
    let mut fds = Vec::new();
    let control_messages = message
        .cmsgs()
        .context("a request has too many descriptors")?;
    for control in control_messages {
        if let ControlMessageOwned::ScmRights(received) = control {
            // SAFETY: the kernel has just created these descriptors, so nothing else owns them.
            fds.extend(
                received
                    .into_iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
            );
        }
    }
    if message.bytes < protocol::HEADER {
        bail!("the host closed the connection");
    }
    let (tag, length) = protocol::parse_header(bytes);
    Ok(Header { tag, length, fds })
}
