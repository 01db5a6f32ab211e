//! The filters of system calls that a program such as systemd-nspawn installs in a container.
#![allow(unsafe_code)]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::sys::seccomp::{Program, program_of};

/// The filters of a container's first program.
#[derive(Debug)]
pub struct Recording {
    /// The filters, in the order in which they were installed.
    pub programs: Vec<Program>,
    /// The program and the libraries of the container's manager.
    pub files: Vec<PathBuf>,
}

/// Runs the manager of a container until the container executes the program `payload`, and kills both
/// then.
///
/// The payload executes no instruction, and can't change its filters. The caller bounds the time: if
/// this process ends, the kernel kills all that it traces.
pub fn record(mut manager: Command, payload: &Path) -> Result<Recording> {
    // SAFETY: the child only makes a system call, which is async-signal-safe.
    unsafe { manager.pre_exec(|| Ok(ptrace::traceme()?)) };
    let child = manager
        .spawn()
        .with_context(|| format!("can't start {:?}", manager.get_program()))?;
    let manager = Pid::from_raw(i32::try_from(child.id())?);
    waitpid(manager, Some(WaitPidFlag::__WALL))?;
    ptrace::setoptions(
        manager,
        Options::PTRACE_O_TRACEFORK
            | Options::PTRACE_O_TRACEVFORK
            | Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_TRACEEXEC
            | Options::PTRACE_O_EXITKILL,
    )?;
    ptrace::cont(manager, None)?;
    let process = follow(manager, payload)?;
    let recording = Recording {
        programs: programs_of(process)?,
        files: mapped_files(manager)?,
    };
    ptrace::kill(process)?;
    nix::sys::signal::kill(manager, Signal::SIGKILL)?;
    Ok(recording)
}

/// Returns the process that executes the payload, and is stopped.
fn follow(manager: Pid, payload: &Path) -> Result<Pid> {
    let payload = fs::metadata(payload)?;
    let is_payload = |process: Pid| {
        fs::metadata(format!("/proc/{process}/exe"))
            .is_ok_and(|file| (file.dev(), file.ino()) == (payload.dev(), payload.ino()))
    };
    loop {
        match waitpid(None, Some(WaitPidFlag::__WALL))? {
            WaitStatus::PtraceEvent(process, _, libc::PTRACE_EVENT_EXEC) if is_payload(process) => {
                return Ok(process);
            }
            // A new process begins with a stop.
            WaitStatus::PtraceEvent(process, ..)
            | WaitStatus::Stopped(process, Signal::SIGSTOP | Signal::SIGTRAP) => {
                ptrace::cont(process, None)?;
            }
            WaitStatus::Stopped(process, signal) => ptrace::cont(process, signal)?,
            WaitStatus::Exited(process, _) | WaitStatus::Signaled(process, ..)
                if process == manager =>
            {
                bail!("the container did not start");
            }
            _ => {}
        }
    }
}

fn programs_of(process: Pid) -> Result<Vec<Program>> {
    let mut programs = Vec::new();
    while let Some(program) = program_of(process, programs.len())
        .context("can't read the filters of the container's program")?
    {
        programs.push(program);
    }
    Ok(programs)
}

fn mapped_files(process: Pid) -> Result<Vec<PathBuf>> {
    let maps = fs::read_to_string(format!("/proc/{process}/maps"))?;
    let paths = maps
        .lines()
        .filter_map(|line| line.find('/').map(|at| &line[at..]));
    let mut files: Vec<_> = paths.map(PathBuf::from).collect();
    files.sort();
    files.dedup();
    Ok(files)
}
