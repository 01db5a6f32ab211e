//! The agent: this program in its hidden form, inside the machine.
//!
//! It lives among the job's processes, which may be hostile and are root there. It holds nothing of
//! the host but the pipes it is handed.
//!
//! | module | holds |
//! | --- | --- |
//! | [`session`] | one connection: a command from its request to its end |
//! | [`child`] | the process that becomes the command |
//! | [`cgroups`] | a cgroup for each command |
//! | [`users`] | the machine's `/etc/passwd` and `/etc/group` |
//! | [`console`] | a terminal for the command |

mod cgroups;
mod child;
mod console;
mod session;
mod users;

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::exit;

use anyhow::{Context, Result};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::{ForkResult, fork};
use nspawn_common::paths::{AGENT_DIR_IN_MACHINE, AGENT_SOCKET};

use cgroups::Cgroups;

/// The argument that asks for it.
pub const OPTION: &str = "--agent";

/// Serves the host until it is killed: a process for each connection.
pub fn main() -> Result<()> {
    let mut cgroups = Cgroups::enter()?;
    let listener = listen(&Path::new(AGENT_DIR_IN_MACHINE).join(AGENT_SOCKET))?;
    // SAFETY: ignoring a signal runs no code of ours; it has the kernel reap the sessions.
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) }.context("can't ignore SIGCHLD")?;
    notify_ready()?;
    loop {
        let (stream, _) = listener.accept().context("can't accept a connection")?;
        let cgroup = cgroups.next();
        // SAFETY: the agent has a single thread, so the child may do all that a program may.
        if let Ok(ForkResult::Child) = unsafe { fork() } {
            drop(listener);
            exit(serve(stream, cgroup));
        }
    }
}

fn serve(stream: UnixStream, cgroup: cgroups::Cgroup) -> i32 {
    // SAFETY: the default action runs no code of ours. A session waits for its command itself.
    let waits = unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl) };
    match waits.context("can't reset SIGCHLD").and_then(|_| session::serve(stream, cgroup)) {
        Ok(()) => 0,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{error:#}");
            1
        }
    }
}

fn listen(path: &Path) -> Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).context("can't replace the socket"),
        _ => UnixListener::bind(path).with_context(|| format!("can't listen on {}", path.display())),
    }
}

// sd_notify(3). Without a socket nobody wants to know.
fn notify_ready() -> Result<()> {
    use std::os::linux::net::SocketAddrExt;
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let address = match path.as_bytes() {
        [b'@', name @ ..] => std::os::unix::net::SocketAddr::from_abstract_name(name),
        _ => std::os::unix::net::SocketAddr::from_pathname(&path),
    };
    let socket = UnixDatagram::unbound().context("can't make a socket")?;
    socket.send_to_addr(b"READY=1", &address.context("NOTIFY_SOCKET")?).context("can't notify systemd")?;
    Ok(())
}
