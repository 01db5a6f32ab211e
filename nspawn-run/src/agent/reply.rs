//! Replies to the host.

use std::io::Write;
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result};
use nspawn_common::agent::protocol;

use crate::agent::exec::Refusal;

/// Answers that the command does not run, with the reason.
pub fn refuse(stream: &mut UnixStream, refusal: &Refusal) -> Result<()> {
    let mut body = refusal.encode();
    body.truncate(protocol::MAX_ANSWER);
    send(stream, protocol::REFUSED, &body)
}

/// Sends a message to the host.
pub fn send(stream: &mut UnixStream, tag: u8, body: &[u8]) -> Result<()> {
    stream
        .write_all(&protocol::frame(tag, body))
        .context("can't answer the host")
}
