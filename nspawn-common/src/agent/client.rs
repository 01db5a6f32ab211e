//! The host's side of a connection to the agent in a machine.

use std::fs::File;
use std::io::{IoSlice, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{
    self, AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, getsockopt,
    sendmsg,
};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, Uid, fchown};

use crate::agent::protocol::{
    HEADER, HELLO, MAX_ANSWER, MAX_REQUEST, REFUSED, RUN, frame, read_frame,
};
use crate::agent::request::Request;
use crate::machine::mounts::UnitMounts;
use crate::machine::paths::{AGENT_READY_FIFO, AGENT_SOCKET, MachinePaths};
use crate::machine::processes;
use crate::sys::fs::open_beneath;
use crate::sys::signals;

/// Connects to the agent of a machine. `limit` is the time limit for each later read and write.
///
/// The machine can replace the socket. Only a socket is accepted in its place, without following
/// links, and only the machine itself can listen on a socket that it created.
pub fn connect(paths: &MachinePaths, limit: Duration) -> Result<UnixStream> {
    connect_in(&UnitMounts::of(paths)?, paths, limit)
}

/// Connects like [`connect`] to the agent of the machine with these mounts.
pub fn connect_in(
    mounts: &UnitMounts,
    paths: &MachinePaths,
    limit: Duration,
) -> Result<UnixStream> {
    let agent = mounts.open(&paths.agent_mount())?;
    let socket_file = open_beneath(&agent, AGENT_SOCKET, OFlag::O_PATH)
        .context("can't open the socket of its agent")?;
    let address = UnixAddr::new(format!("/proc/self/fd/{}", socket_file.as_raw_fd()).as_str())?;
    let stream = UnixStream::from(socket::socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?);
    stream.set_read_timeout(Some(limit))?;
    // The limit must be in force before connect(2), which otherwise waits without end for a
    // listener that accepts no connection.
    stream.set_write_timeout(Some(limit))?;
    socket::connect(stream.as_raw_fd(), &address).context("its agent does not listen")?;
    Ok(stream)
}

/// Waits until the agent of a machine that has just been started accepts commands.
///
/// Fails if the agent does not answer within `limit`, or if the machine ends.
pub fn wait_until_ready(paths: &MachinePaths, limit: Duration) -> Result<()> {
    // No command has run yet that could have replaced the FIFO. Waiting by inotify would be slower:
    // the kernel takes ten milliseconds to close an inotify descriptor.
    let ready = open_beneath(
        UnitMounts::of(paths)?.open(&paths.agent_mount())?,
        AGENT_READY_FIFO,
        OFlag::O_RDONLY | OFlag::O_NONBLOCK,
    )
    .context("can't open the FIFO of its agent")?;
    let cgroup_events = File::open(paths.cgroup().join("cgroup.events")).context("it has ended")?;
    let deadline = Instant::now() + limit;
    while ping(paths, limit).is_err() {
        signals::check()?;
        // POLLPRI reports only changes after the last read (cgroups(7)).
        cgroup_events
            .read_at(&mut [0; 64], 0)
            .context("it has ended")?;
        let left = deadline.saturating_duration_since(Instant::now());
        let mut events = [
            PollFd::new(ready.as_fd(), PollFlags::POLLIN),
            PollFd::new(cgroup_events.as_fd(), PollFlags::POLLPRI),
        ];
        signals::poll(&mut events, left)?;
        if left.is_zero() || events[0].any() == Some(true) || !processes::is_running(paths) {
            return ping(paths, limit);
        }
    }
    Ok(())
}

/// Checks that the agent of a machine answers within `limit`.
pub fn ping(paths: &MachinePaths, limit: Duration) -> Result<()> {
    let mut stream = connect(paths, limit)?;
    // An agent that has no process left refuses each connection, and may close it before the host
    // writes. So a failed write is an error only if no answer arrives either.
    let sent = stream.write_all(&frame(HELLO, &[]));
    let answer = read_frame(&mut stream, MAX_ANSWER);
    if let Ok(Some((HELLO | REFUSED, _))) = answer {
        return Ok(());
    }
    sent?;
    match answer.context("its agent did not answer in time")? {
        Some((tag, _)) => bail!("its agent answered with the unknown message {tag}"),
        None => bail!("its agent closed the connection without an answer"),
    }
}

/// Sends a [`RUN`] frame, with the command's stdin, stdout and stderr as descriptors.
pub fn send_request(
    agent: &mut UnixStream,
    request: &Request,
    streams: [OwnedFd; 3],
) -> Result<()> {
    let body = request.encode();
    if body.len() > MAX_REQUEST {
        bail!(
            "its arguments, environment and script are larger than {} MiB",
            MAX_REQUEST >> 20
        );
    }
    let message = frame(RUN, &body);
    // The descriptors travel with the header, which is small enough to be sent as a whole.
    let (header, body) = message.split_at(HEADER);
    // The machine's root becomes the owner. Each process that has a stream may open it again by
    // name, for example as /dev/stdout, also after a change of its user. No other process can reach
    // the stream, whatever its mode.
    let peer = getsockopt(&*agent, PeerCredentials)?;
    for stream in &streams {
        fchown(
            stream,
            Some(Uid::from_raw(peer.uid())),
            Some(Gid::from_raw(peer.gid())),
        )?;
        fchmod(stream, Mode::from_bits_truncate(0o666))?;
    }
    let fds = streams.each_ref().map(AsRawFd::as_raw_fd);
    let descriptors = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(
        agent.as_raw_fd(),
        &[IoSlice::new(header)],
        &descriptors,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    Ok(agent.write_all(body)?)
}
