//! Sockets of 32-bit programs on x86-64.
//!
//! Debian's C library for i386 creates all sockets by socketcall(2), whose arguments are in memory,
//! where a filter can't read them. So a process of the unit, which is no part of the machine,
//! receives these calls. For each one, a child enters the namespaces of the caller, takes its
//! credentials and its arguments, and calls socket(2) or socketpair(2), for which the filter holds.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::process::exit;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc::SOCK_CLOEXEC;
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{ForkResult, Pid, getppid, setgroups};
use nspawn_common::machine::paths::MachinePaths;
use nspawn_common::sys::call_filter::SYS_SOCKET;
use nspawn_common::sys::credentials::Credentials;
use nspawn_common::sys::seccomp_listener::{Call, Listener};
use nspawn_common::sys::{fork, namespace, socket};

/// Cgroup of the process, below that of the unit.
const CGROUP: &str = "socketcall";
/// Time limit for a call. A caller can block it by memory whose pages a process of its provides.
const LIMIT: Duration = Duration::from_secs(5);

/// Starts the process, which ends with this one.
pub fn serve(paths: &MachinePaths, listener: &Listener) -> Result<()> {
    start(paths, listener).context("can't start the process for sockets of 32-bit programs")
}

/// The process has a cgroup of its own, since the unit's cgroup must have no processes (cgroup.rst).
fn start(paths: &MachinePaths, listener: &Listener) -> Result<()> {
    let parent = Pid::this();
    let cgroup = paths.cgroup().join(CGROUP);
    fs::create_dir(&cgroup)?;
    if let ForkResult::Child = fork::fork_into(&File::open(cgroup)?)? {
        let _ = run(parent, listener);
        exit(1);
    }
    Ok(())
}

fn run(parent: Pid, listener: &Listener) -> Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    setgroups(&[])?;
    if getppid() == parent {
        answer_all(listener);
    }
    Ok(())
}

/// Answers calls until the listener fails.
fn answer_all(listener: &Listener) {
    loop {
        match listener.receive() {
            Ok(call) => answer(listener, &call),
            Err(Errno::ENOENT | Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}

fn answer(listener: &Listener, call: &Call) {
    if fork::run_with_limit(LIMIT, || create_sockets(listener, call)).is_err() {
        // The caller may have ended, or the child may have given the answer.
        let _ = listener.end(call, Err(Errno::ENOSYS));
    }
}

/// Creates the sockets that the call requests, and ends the call.
fn create_sockets(listener: &Listener, call: &Call) -> Result<()> {
    let memory = OpenOptions::new()
        .read(true)
        .write(true)
        .open(format!("/proc/{}/mem", call.thread))?;
    become_caller(listener, call)?;
    let [family, kind, protocol, pair] = arguments(&memory, call.arguments[1])?;
    let (numbers, close_on_exec) = ([family, kind, protocol], kind & SOCK_CLOEXEC != 0);
    if call.arguments[0] as u32 == SYS_SOCKET {
        match socket::create(numbers) {
            Ok(socket) => listener.end_with(call, socket, close_on_exec)?,
            Err(errno) => listener.end(call, Err(errno))?,
        }
        return Ok(());
    }
    let result = socket::create_pair(numbers).and_then(|sockets| {
        for (index, socket) in (0_u64..).zip(&sockets) {
            let number = listener.add(call, socket, close_on_exec)?;
            let place = u64::from(pair as u32) + 4 * index;
            let written = memory.write_all_at(&number.to_le_bytes(), place);
            written.map_err(|_| Errno::EFAULT)?;
        }
        Ok(())
    });
    Ok(listener.end(call, result)?)
}

/// Gives this process the namespaces and the credentials that decide on sockets.
fn become_caller(listener: &Listener, call: &Call) -> Result<()> {
    let network = namespace::open(call.thread, "ns/net")?;
    let users = namespace::open(call.thread, "ns/user")?;
    let credentials = Credentials::of(call.thread)?;
    listener.check(call)?;
    setns(network, CloneFlags::CLONE_NEWNET)?;
    // setns(2) refuses to enter the user namespace that the process is in already.
    let has_own_users = !namespace::is_own(&users, "user")?;
    credentials.adopt(Some(&users).filter(|_| has_own_users))
}

/// Reads four words of the caller's memory. socket(2) has three arguments, and ignores the last
/// word, which may be missing.
fn arguments(memory: &File, place: u64) -> Result<[i32; 4]> {
    let mut bytes = [0; 16];
    // A pointer of i386 has 32 bits.
    let length = memory.read_at(&mut bytes, place & u64::from(u32::MAX))?;
    anyhow::ensure!(length >= 12, "the arguments are not in memory");
    let word = |index: usize| bytes[4 * index..][..4].try_into().map(i32::from_le_bytes);
    Ok([word(0)?, word(1)?, word(2)?, word(3)?])
}
