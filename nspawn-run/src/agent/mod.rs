//! The agent: this program in its hidden form, inside the machine.
//!
//! It lives among the job's processes, which may be hostile and are root there. It holds nothing of
//! the host but the pipes it is handed.
//!
//! | module | holds |
//! | --- | --- |
//! | [`session`] | one connection: a command from its request to its end |
//! | [`child`] | the process that becomes the command |
//! | [`cgroups`], [`processes`], [`ends`] | a cgroup for each command; its processes; how it ended |
//! | [`users`] | the machine's `/etc/passwd` and `/etc/group` |
//! | [`console`] | a terminal for the command |

pub mod command_cgroup;
pub mod descendants;
pub mod exec;
pub mod limits;
pub mod passwd;
pub mod pty;
pub mod reaper;
pub mod session;

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::exit;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;
use nix::unistd::{ForkResult, Pid};
use nspawn_common::machine::paths::{AGENT_MOUNT_IN_MACHINE, AGENT_READY_FIFO, AGENT_SOCKET};
use nspawn_common::sys::fork::fork;

use command_cgroup::{Cgroup, Cgroups};
use exec::Refusal;
use reaper::End;

/// The argument that asks for it.
pub const OPTION: &str = "--agent";

/// The same, of a machine that runs for its commands only: it ends itself when there are none any more.
pub const ONCE_OPTION: &str = "--agent-once";

/// How long it waits for another then. Who begins a command looks first whether the machine runs, and who ends the
/// last one ends the machine; this is for those who are killed before they can.
const LINGER: Duration = Duration::from_secs(10);

/// The argument that asks for its end, and that of all its sessions.
pub const STOP_OPTION: &str = "--agent-stop";

/// Kills the agent and its sessions, and no command.
pub fn stop() -> Result<()> {
    command_cgroup::kill_agent()
}

/// Serves the host until it is killed: a process for each connection. With `once`, until nobody connects any more.
pub fn main(once: bool) -> Result<()> {
    let mut cgroups = Cgroups::enter()?;
    let shown = Path::new(AGENT_MOUNT_IN_MACHINE);
    let listener = listen(&shown.join(AGENT_SOCKET))?;
    let mut sessions = Sessions::new()?;
    notify_ready()?;
    tell_host(&shown.join(AGENT_READY_FIFO));
    loop {
        let mut fds =
            [listener.as_fd(), sessions.ends.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let is_idle = once && sessions.running.is_empty();
        let limit = if is_idle {
            PollTimeout::try_from(LINGER)?
        } else {
            PollTimeout::NONE
        };
        if poll(&mut fds, limit).context("can't wait for connections")? == 0 {
            return Ok(());
        }
        let [connects, ends] = fds.map(|fd| fd.any() == Some(true));
        if ends {
            sessions.reap();
        }
        if connects {
            let (stream, _) = listener.accept().context("can't accept a connection")?;
            sessions.start(stream, cgroups.next());
        }
    }
}

/// The sessions that run, and the cgroups in which commands have left something running.
struct Sessions {
    ends: SignalFd,
    running: HashMap<Pid, Cgroup>,
    left: Vec<Cgroup>,
}

impl Sessions {
    fn new() -> Result<Self> {
        Ok(Self {
            ends: reaper::watch()?,
            running: HashMap::new(),
            left: Vec::new(),
        })
    }

    fn start(&mut self, mut stream: UnixStream, cgroup: Cgroup) {
        match fork() {
            Ok(ForkResult::Child) => exit(serve(stream, &cgroup)),
            Ok(ForkResult::Parent { child }) => drop(self.running.insert(child, cgroup)),
            // A host that has gone needs no answer.
            Err(errno) => drop(session::refuse(&mut stream, &Refusal::exhausted(errno))),
        }
    }

    fn reap(&mut self) {
        while let Ok(Some(_)) = self.ends.read_signal() {}
        while let Some((pid, end)) = reaper::next_ended() {
            let Some(cgroup) = self.running.remove(&pid) else {
                continue;
            };
            // A session that was killed has told the host of no end: then there must be one.
            if matches!(end, End::Signaled(_)) {
                let _ = cgroup.kill();
            }
            self.left.push(cgroup);
        }
        self.left.retain(|cgroup| !cgroup.remove());
    }
}

fn serve(stream: UnixStream, cgroup: &Cgroup) -> i32 {
    let Err(error) = session::serve(stream, cgroup) else {
        return 0;
    };
    let _ = writeln!(std::io::stderr(), "{error:#}");
    // The host has not learnt of the command's end, so there must be one.
    if let Err(error) = cgroup.kill_all() {
        let _ = writeln!(std::io::stderr(), "{error:#}");
    }
    1
}

// Who waits for the socket finds one that listens.
fn listen(path: &Path) -> Result<UnixListener> {
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).context("can't replace the socket");
        }
        _ => {}
    }
    let listener =
        UnixListener::bind(&new).with_context(|| format!("can't listen on {}", new.display()))?;
    fs::rename(&new, path).context("can't replace the socket")?;
    Ok(listener)
}

// If it waits for that.
fn tell_host(sign: &Path) {
    let sign = OpenOptions::new()
        .write(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(sign);
    let _ = sign.and_then(|mut sign| sign.write_all(b"!"));
}

// sd_notify(3). Without a socket nobody wants to know.
fn notify_ready() -> Result<()> {
    use std::os::linux::net::SocketAddrExt;
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return Ok(());
    };
    let address = match path.as_bytes() {
        [b'@', name @ ..] => std::os::unix::net::SocketAddr::from_abstract_name(name),
        _ => std::os::unix::net::SocketAddr::from_pathname(&path),
    };
    let socket = UnixDatagram::unbound().context("can't make a socket")?;
    socket
        .send_to_addr(b"READY=1", &address.context("NOTIFY_SOCKET")?)
        .context("can't notify systemd")?;
    Ok(())
}
