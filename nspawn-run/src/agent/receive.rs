//! The first message on a connection, with the descriptors that the host sends along.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, bail};
use nspawn_common::agent::protocol;
use nspawn_common::sys::socket;

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
    let (count, fds) = socket::receive(stream, &mut bytes).context("can't read the request")?;
    if count < protocol::HEADER {
        bail!("the host closed the connection");
    }
    let (tag, length) = protocol::parse_header(bytes);
    Ok(Header { tag, length, fds })
}
