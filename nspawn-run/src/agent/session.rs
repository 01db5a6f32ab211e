//! A connection of the host: a command from its request to its end.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, bail};
use nspawn_common::agent::protocol;
use nspawn_common::agent::request::Request;
use nspawn_common::exit_code::Exit;

use crate::agent::command_cgroup::CommandCgroup;
use crate::agent::descendants;
use crate::agent::exec::Refusal;
use crate::agent::reaper::ProcessEnd;
use crate::agent::receive;
use crate::agent::receive::Header;
use crate::agent::reply;
use crate::agent::running_command::RunningCommand;

/// Answers a request of the host.
pub fn serve(mut stream: UnixStream, cgroup: &CommandCgroup) -> Result<()> {
    let Header { tag, length, fds } = receive::receive_header(&stream)?;
    match tag {
        protocol::HELLO => reply::send(&mut stream, protocol::HELLO, &[]),
        protocol::RUN => {
            let body = protocol::read_body(&mut stream, length, protocol::MAX_REQUEST)
                .context("can't read the request")?;
            let Ok(pipes) = <[OwnedFd; 3]>::try_from(fds) else {
                bail!("a request has no pipes for stdin, stdout and stderr")
            };
            run(stream, cgroup, Request::decode(&body)?, pipes)
        }
        // The programs on the host have a later version.
        _ => {
            let reason = "another version of nspawn-prepare created the machine; create it again";
            let refusal = Refusal {
                exit: Exit::RunFailure,
                reason: reason.to_owned(),
            };
            reply::refuse(&mut stream, &refusal)
        }
    }
}

fn run(
    mut stream: UnixStream,
    cgroup: &CommandCgroup,
    request: Request,
    pipes: [OwnedFd; 3],
) -> Result<()> {
    descendants::adopt_orphans()?;
    let kill_remaining = request.kill_remaining;
    let mut command = match RunningCommand::start(cgroup, request, pipes) {
        Ok(command) => command,
        Err(refusal) => return reply::refuse(&mut stream, &refusal),
    };
    reply::send(&mut stream, protocol::STARTED, &[])?;
    let end = command.supervise(cgroup, &mut stream)?;
    if kill_remaining {
        cgroup.kill_all()?;
    }
    match end {
        ProcessEnd::Exited(code) => reply::send(&mut stream, protocol::EXITED, &[code]),
        ProcessEnd::Signaled(number) => reply::send(&mut stream, protocol::SIGNALED, &[number]),
    }
}
