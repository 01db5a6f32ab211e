//! The agent: an internal form of this program that runs in the machine.
//!
//! The agent runs among the processes of the job, which may be hostile and have root in the
//! machine. It has nothing of the host but the pipes that the host sends.
//!
//! | module | contents |
//! | --- | --- |
//! | [`session`] | a connection of the host |
//! | [`receive`], [`reply`] | the first message of the host, the replies to it |
//! | [`running_command`] | a command from its start to its end |
//! | [`script`] | the script of a request |
//! | [`exec`] | the process that becomes the command |
//! | [`command_cgroup`], [`limits`] | a cgroup for each command, with the machine's limits |
//! | [`descendants`], [`reaper`] | processes of a command, and how they end |
//! | [`login`] | variables of a login |
//! | [`user_manager`] | the systemd of a user |
//! | [`online`] | the wait for the network, for services of the image |
//! | [`resolvers`] | name servers in the files of systemd-resolved |
//! | [`sysctl`] | kernel settings of the machine's own namespaces |
//! | [`pty`] | a terminal for the command |

pub mod command_cgroup;
pub mod descendants;
pub mod exec;
pub mod limits;
pub mod login;
pub mod online;
pub mod pty;
pub mod reaper;
pub mod receive;
pub mod reply;
pub mod resolvers;
pub mod running_command;
pub mod script;
pub mod session;
pub mod sysctl;
pub mod user_manager;

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
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
use nspawn_common::sys::fs::ignore_missing;

use command_cgroup::{AgentCgroup, CommandCgroup};
use exec::Refusal;
use reaper::ProcessEnd;

/// Argument that starts the agent.
pub const OPTION: &str = "--agent";

/// Argument that starts the agent of a machine that runs for its commands only.
pub const ONCE_OPTION: &str = "--agent-once";

/// Argument that ends the agent and all of its sessions.
pub const STOP_OPTION: &str = "--agent-stop";

/// Argument that waits until the machine has its network. Services of the image call it.
pub const ONLINE_OPTION: &str = "--agent-wait-online";

/// Time that an idle agent waits for another command before it exits.
///
/// A program that starts a command first checks that the machine runs, and the program with the
/// last command stops the machine. So this limit matters only if these programs are killed before
/// that.
const IDLE_LIMIT: Duration = Duration::from_secs(10);

/// Behaviour of the agent when no command runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdlePolicy {
    /// The agent runs until it is killed.
    Stay,
    /// The agent exits after [`IDLE_LIMIT`], which ends the machine.
    Exit,
}

/// Kills the agent and its sessions, but no command.
pub fn stop() -> Result<()> {
    command_cgroup::kill_agent()
}

/// Serves the host, with a process for each connection.
pub fn main(policy: IdlePolicy) -> Result<()> {
    sysctl::permit_ping();
    sysctl::open_user_settings();
    resolvers::publish();
    let mut cgroup = AgentCgroup::enter()?;
    let mount = Path::new(AGENT_MOUNT_IN_MACHINE);
    let listener = listen(&mount.join(AGENT_SOCKET))?;
    let mut sessions = Sessions::new()?;
    notify_systemd()?;
    notify_host(&mount.join(AGENT_READY_FIFO));
    loop {
        let is_idle = policy == IdlePolicy::Exit && sessions.running.is_empty();
        let limit = if is_idle {
            PollTimeout::try_from(IDLE_LIMIT)?
        } else {
            PollTimeout::NONE
        };
        let mut fds = [listener.as_fd(), sessions.child_events.as_fd()]
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        if poll(&mut fds, limit).context("can't wait for connections")? == 0 {
            return Ok(());
        }
        let [has_connection, has_ended_child] = fds.map(|fd| fd.any() == Some(true));
        if has_ended_child {
            sessions.reap();
        }
        if has_connection {
            let (stream, _) = listener.accept().context("can't accept a connection")?;
            sessions.start(stream, cgroup.next_command());
        }
    }
}

/// Running sessions, and the cgroups in which ended commands have left processes.
struct Sessions {
    child_events: SignalFd,
    running: HashMap<Pid, CommandCgroup>,
    leftover: Vec<CommandCgroup>,
}

impl Sessions {
    fn new() -> Result<Self> {
        Ok(Self {
            child_events: reaper::watch()?,
            running: HashMap::new(),
            leftover: Vec::new(),
        })
    }

    fn start(&mut self, mut stream: UnixStream, cgroup: CommandCgroup) {
        match fork() {
            Ok(ForkResult::Child) => exit(serve(stream, &cgroup)),
            Ok(ForkResult::Parent { child }) => {
                self.running.insert(child, cgroup);
            }
            Err(errno) => {
                // The host may have closed the connection, so a write error is ignored.
                let _ = reply::refuse(&mut stream, &Refusal::exhausted(errno));
            }
        }
    }

    fn reap(&mut self) {
        while let Ok(Some(_)) = self.child_events.read_signal() {}
        while let Some((pid, end)) = reaper::next() {
            let Some(cgroup) = self.running.remove(&pid) else {
                continue;
            };
            // A killed session has not reported the end of its command to the host, so the command
            // must end as well.
            if matches!(end, ProcessEnd::Signaled(_)) {
                let _ = cgroup.kill();
            }
            self.leftover.push(cgroup);
        }
        self.leftover.retain(|cgroup| !cgroup.remove());
    }
}

// Returns the exit status of the session.
fn serve(stream: UnixStream, cgroup: &CommandCgroup) -> i32 {
    let Err(error) = session::serve(stream, cgroup) else {
        return 0;
    };
    let _ = writeln!(std::io::stderr(), "{error:#}");
    // The end of the command was not reported to the host, so the command must end as well.
    if let Err(error) = cgroup.kill_all() {
        let _ = writeln!(std::io::stderr(), "{error:#}");
    }
    1
}

// Binds the socket under another name and renames it, so that a client which finds the socket can
// connect at once.
fn listen(path: &Path) -> Result<UnixListener> {
    let new_path = path.with_extension("new");
    ignore_missing(fs::remove_file(&new_path)).context("can't replace the socket")?;
    let listener = UnixListener::bind(&new_path)
        .with_context(|| format!("can't listen on {}", new_path.display()))?;
    fs::rename(&new_path, path).context("can't replace the socket")?;
    Ok(listener)
}

// Writes to the FIFO. Without a reader the open fails, and nothing needs to be written.
fn notify_host(fifo: &Path) {
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(fifo);
    let _ = file.and_then(|mut file| file.write_all(b"!"));
}

// Tells systemd that the agent is ready (sd_notify(3)). Under another init there is no socket.
fn notify_systemd() -> Result<()> {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return Ok(());
    };
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(&path),
    };
    let address =
        address.with_context(|| format!("NOTIFY_SOCKET has the invalid value {path:?}"))?;
    let socket = UnixDatagram::unbound().context("can't create a socket")?;
    socket
        .send_to_addr(b"READY=1", &address)
        .context("can't notify systemd")?;
    Ok(())
}
