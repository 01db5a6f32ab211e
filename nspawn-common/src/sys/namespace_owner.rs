//! The owner of the user namespace that another program creates.
//!
//! The kernel allows each user of the host a number of namespaces, inotify and fanotify instances
//! and watches, bytes of POSIX message queues, pending signals and other things
//! (user_namespaces(7), `/proc/sys/user`). What all users of a user namespace have is counted once
//! more as a whole: for the owner of the namespace, who is the effective user of the process that
//! created it. This sum is the only bound that a machine can't evade: the limits inside its
//! namespace hold for each of its users, and its root may raise them.
//!
//! systemd-nspawn runs as root, so all machines and the host's own root would share root's numbers.
//! No version has an option for another owner or for an existing user namespace. It refuses to start
//! if its effective user is not root, so the launcher can't change that before. It creates the
//! namespace by a system call of its own, which no preloaded library can replace. So a tracer
//! (ptrace(2)) changes the effective user of the process that is about to create the namespace.
//!
//! The tracer waits only for processes that it traces, and each wait ends with them. If the tracer
//! ends early, the kernel kills them, so none stays stopped.
//!
//! The owner of a namespace has all capabilities in it. Root of the host is no longer the owner, and
//! needs those capabilities itself.

#![allow(unsafe_code)]

use std::ffi::c_long;
use std::fs::{self, File};
use std::io::{Read, Write};

use anyhow::{Context, Error, Result, bail};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::ptrace;
use nix::sys::ptrace::Options;
use nix::sys::ptrace::regset::NT_PRSTATUS;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid, pipe2};

use crate::sys::{credentials, fork};

type Registers = libc::user_regs_struct;

/// Makes the host's user `owner` the owner of the user namespace of a container.
///
/// The program that this process executes next creates the container. The process that creates the
/// user namespace must be its first child in a mount namespace of its own, as with systemd-nspawn.
/// Until then another process, in `cgroup`, traces the program, and the kernel kills both together.
///
/// Fails if the host does not allow this process to be traced. `report` gets a later error. After
/// either, the program's own user is the owner.
pub fn set_in_next_program(owner: u32, cgroup: &File, report: impl FnOnce(Error)) -> Result<()> {
    credentials::keep_capabilities().context("can't keep capabilities")?;
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    let program = getpid();
    let mut writer = Some(File::from(writer));
    // systemd-nspawn would not reap a child that it does not know.
    fork::run_detached(Some(cgroup), || {
        match trace(program, owner, writer.take()) {
            Ok(()) => 0,
            Err(error) => {
                report(error);
                1
            }
        }
    })?;
    drop(writer);
    let mut answer = String::new();
    File::from(reader).read_to_string(&mut answer)?;
    match answer.as_str() {
        ATTACHED => Ok(()),
        "" => bail!("can't trace systemd-nspawn: the tracer has ended"),
        error => bail!("can't trace systemd-nspawn: {error}"),
    }
}

/// Message of the tracer to the program that it traces.
const ATTACHED: &str = "attached";

// Traces the program until the container has its owner, and first answers whether it can.
fn trace(program: Pid, owner: u32, answer: Option<File>) -> Result<()> {
    let options = Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_EXITKILL;
    let attached = ptrace::seize(program, options);
    if let Some(mut answer) = answer {
        let message = attached.map_or_else(|errno| errno.desc(), |()| ATTACHED);
        let _ = answer.write_all(message.as_bytes());
    }
    // The program reports that it is not traced.
    if attached.is_err() {
        return Ok(());
    }
    let result = follow(program, owner);
    // A program that can't be released has ended, or the kernel kills it when this process ends.
    let _ = ptrace::detach(program, None);
    result.context("can't change the owner of the machine's user namespace")
}

// Follows the program to the child that creates the user namespace, or to its end.
fn follow(program: Pid, owner: u32) -> Result<()> {
    loop {
        match waitpid(program, Some(WaitPidFlag::__WALL))? {
            WaitStatus::PtraceEvent(_, _, event) if is_new_process(event) => {
                let child = Pid::from_raw(i32::try_from(ptrace::getevent(program)?)?);
                waitpid(child, Some(WaitPidFlag::__WALL))?;
                let result = change_container(program, child, owner);
                // The child may have been killed.
                let _ = ptrace::detach(child, None);
                if result? {
                    return Ok(());
                }
                ptrace::cont(program, None)?;
            }
            WaitStatus::Stopped(_, signal) => ptrace::cont(program, signal)?,
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => return Ok(()),
            _ => ptrace::cont(program, None)?,
        }
    }
}

// Changes the user of a child that becomes the container, and returns whether it does.
fn change_container(program: Pid, child: Pid, owner: u32) -> Result<bool> {
    let is_container = mount_namespace(child)? != mount_namespace(program)?;
    if is_container {
        become_user(child, owner)?;
    }
    Ok(is_container)
}

fn is_new_process(event: i32) -> bool {
    [
        libc::PTRACE_EVENT_FORK,
        libc::PTRACE_EVENT_VFORK,
        libc::PTRACE_EVENT_CLONE,
    ]
    .contains(&event)
}

fn mount_namespace(process: Pid) -> Result<std::path::PathBuf> {
    Ok(fs::read_link(format!("/proc/{process}/ns/mnt"))?)
}

// Changes the effective user of a new process, or nothing.
fn become_user(process: Pid, user: u32) -> Result<()> {
    let before = ptrace::getregset::<NT_PRSTATUS>(process)?;
    let result = change_user(process, &before, user);
    if result.is_err() {
        let _ = change_user(process, &before, 0);
    }
    ptrace::setregset::<NT_PRSTATUS>(process, before)?;
    result
}

// The process keeps root's access to files, and the capabilities by its secure bits.
fn change_user(process: Pid, before: &Registers, user: u32) -> Result<()> {
    let unchanged = u64::from(u32::MAX);
    for (number, arguments) in [
        (libc::SYS_setresuid, [unchanged, user.into(), unchanged]),
        (libc::SYS_setfsuid, [0; 3]),
    ] {
        call(process, before, number, arguments)?;
    }
    Ok(())
}

// Executes a system call in a process that has just left one, and was stopped.
fn call(process: Pid, left: &Registers, number: c_long, arguments: [u64; 3]) -> Result<()> {
    let mut registers = *left;
    arch::set_call(&mut registers, number as u64, arguments);
    ptrace::setregset::<NT_PRSTATUS>(process, registers)?;
    ptrace::step(process, None)?;
    let status = waitpid(process, Some(WaitPidFlag::__WALL))?;
    if !matches!(status, WaitStatus::Stopped(_, Signal::SIGTRAP)) {
        bail!("it does not make a system call, but {status:?}");
    }
    let result = arch::result(&ptrace::getregset::<NT_PRSTATUS>(process)?);
    // Errors are the numbers from -4095 on.
    match i32::try_from(-result)
        .ok()
        .filter(|errno| (1..4096).contains(errno))
    {
        Some(errno) => {
            Err(Errno::from_raw(errno)).with_context(|| format!("system call {number} fails"))
        }
        None => Ok(()),
    }
}

#[cfg(target_arch = "x86_64")]
mod arch {
    use super::Registers;

    /// Length of the instruction `syscall`.
    const INSTRUCTION: u64 = 2;

    pub fn set_call(registers: &mut Registers, number: u64, [first, second, third]: [u64; 3]) {
        registers.rip -= INSTRUCTION;
        registers.rax = number;
        // The kernel takes a process that is in no system call, and restarts none.
        registers.orig_rax = u64::MAX;
        registers.rdi = first;
        registers.rsi = second;
        registers.rdx = third;
        registers.r10 = 0;
        registers.r8 = 0;
    }

    pub fn result(registers: &Registers) -> i64 {
        registers.rax as i64
    }
}

#[cfg(target_arch = "aarch64")]
mod arch {
    use super::Registers;

    /// Length of the instruction `svc`.
    const INSTRUCTION: u64 = 4;
    /// Register of the system call's number.
    const NUMBER: usize = 8;

    pub fn set_call(registers: &mut Registers, number: u64, arguments: [u64; 3]) {
        registers.pc -= INSTRUCTION;
        registers.regs[NUMBER] = number;
        registers.regs[..5].fill(0);
        registers.regs[..3].copy_from_slice(&arguments);
    }

    pub fn result(registers: &Registers) -> i64 {
        registers.regs[0] as i64
    }
}
