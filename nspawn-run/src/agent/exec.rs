//! The process that becomes the command.

use std::convert::Infallible;
use std::ffi::{CString, OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{
    Gid, Uid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, execvp, fchown, setgid, setgroups,
    setsid, setuid,
};
use nspawn_common::exit_code::Exit;
use nspawn_common::sys::environment;
use nspawn_common::sys::signals;

use crate::agent::command_cgroup::Cgroup;
use crate::agent::passwd::User;
use crate::agent::pty;

/// As systemd gives its services.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The command's stdin, stdout and stderr.
pub enum Stdio {
    Pipes([OwnedFd; 3]),
    Terminal(OwnedFd),
}

/// All that the process needs to know.
pub struct Plan<'a> {
    pub cgroup: &'a Cgroup,
    pub stdio: Stdio,
    pub user: &'a User,
    /// Where to run; the user's home, or `/` if that is missing, where none is asked for.
    pub directory: Option<OsString>,
    pub environment: Vec<OsString>,
    /// What to execute: a path, or a name to look up on PATH.
    pub program: OsString,
    /// Its arguments, the zeroth included.
    pub arguments: Vec<OsString>,
}

/// Why a command did not start: an exit status and a reason.
pub struct Refusal {
    pub exit: Exit,
    pub why: String,
}

impl Refusal {
    /// Returns the refusal of a command for which there is no process.
    pub fn exhausted(errno: Errno) -> Self {
        Self {
            exit: Exit::Exhausted,
            why: format!("fork: {errno:?}"),
        }
    }

    /// Returns the refusal of a command whose process could not be made.
    pub fn of_fork(error: anyhow::Error) -> Self {
        match error.downcast_ref() {
            Some(errno @ (Errno::EAGAIN | Errno::ENOMEM)) => Self::exhausted(*errno),
            _ => error.into(),
        }
    }
}

impl From<anyhow::Error> for Refusal {
    fn from(error: anyhow::Error) -> Self {
        Self {
            exit: Exit::RunFailure,
            why: format!("{error:#}"),
        }
    }
}

/// Becomes the command. Called in a process of a single thread, just forked.
pub fn become_command(plan: Plan) -> Result<Infallible, Refusal> {
    setsid().context("can't start a session")?;
    take_stdio(&plan.stdio, plan.user).context("can't set up stdin, stdout and stderr")?;
    signals::reset_all().context("can't reset signals")?;
    umask(Mode::from_bits_truncate(0o022));
    set_environment(&plan);
    become_user(plan.user).with_context(|| format!("can't become user {:?}", plan.user.name))?;
    enter_directory(&plan)?;
    execute(&plan)
}

fn take_stdio(stdio: &Stdio, user: &User) -> Result<()> {
    let (stdin, stdout, stderr) = match stdio {
        Stdio::Pipes([stdin, stdout, stderr]) => (stdin, stdout, stderr),
        Stdio::Terminal(terminal) => {
            pty::take_control(terminal)?;
            (terminal, terminal, terminal)
        }
    };
    for fd in [stdin, stdout, stderr] {
        // So that the command can open /dev/stderr again by its name.
        fchown(
            fd,
            Some(Uid::from_raw(user.uid)),
            Some(Gid::from_raw(user.gid)),
        )?;
    }
    dup2_stdin(stdin)?;
    dup2_stdout(stdout)?;
    dup2_stderr(stderr)?;
    Ok(())
}

fn set_environment(plan: &Plan) {
    let user = plan.user;
    let login = [
        ("HOME", &*user.home),
        ("USER", &*user.name),
        ("LOGNAME", &*user.name),
        ("SHELL", &*user.shell),
        ("PATH", OsStr::new(PATH)),
    ];
    let asked = plan
        .environment
        .iter()
        .filter_map(|entry| split_entry(entry));
    environment::clear_variables();
    for (name, value) in login
        .map(|(name, value)| (OsStr::new(name), value))
        .into_iter()
        .chain(asked)
    {
        environment::set_variable(name, value);
    }
}

fn split_entry(entry: &OsStr) -> Option<(&OsStr, &OsStr)> {
    let bytes = entry.as_bytes();
    let equals = bytes
        .iter()
        .position(|byte| *byte == b'=')
        .filter(|place| *place > 0)?;
    if bytes.contains(&0) {
        return None;
    }
    Some((
        OsStr::from_bytes(&bytes[..equals]),
        OsStr::from_bytes(&bytes[equals + 1..]),
    ))
}

fn become_user(user: &User) -> Result<()> {
    let groups: Vec<Gid> = user.groups.iter().copied().map(Gid::from_raw).collect();
    setgroups(&groups)?;
    setgid(Gid::from_raw(user.gid))?;
    setuid(Uid::from_raw(user.uid))?;
    Ok(())
}

fn enter_directory(plan: &Plan) -> Result<()> {
    match &plan.directory {
        Some(directory) => chdir(Path::new(directory))
            .with_context(|| format!("can't enter the directory {directory:?}")),
        None => chdir(Path::new(&plan.user.home))
            .or_else(|_| chdir("/"))
            .context("can't enter a directory"),
    }
}

fn execute(plan: &Plan) -> Result<Infallible, Refusal> {
    let program = c_string(&plan.program)?;
    let arguments = plan
        .arguments
        .iter()
        .map(|argument| c_string(argument))
        .collect::<Result<Vec<_>>>()?;
    let Err(errno) = execvp(&program, &arguments);
    let exit = match errno {
        Errno::ENOENT | Errno::ENOTDIR => Exit::NotFound,
        _ => Exit::NotExecutable,
    };
    Err(Refusal {
        exit,
        why: format!("can't run {:?}: {}", plan.program, errno.desc()),
    })
}

fn c_string(word: &OsStr) -> Result<CString> {
    CString::new(word.to_owned().into_vec())
        .map_err(|_| anyhow!("an argument has a NUL byte in it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_that_are_no_variables_are_dropped() {
        assert_eq!(
            split_entry(OsStr::new("A=b=c")),
            Some((OsStr::new("A"), OsStr::new("b=c")))
        );
        assert_eq!(
            split_entry(OsStr::new("A=")),
            Some((OsStr::new("A"), OsStr::new("")))
        );
        assert_eq!(split_entry(OsStr::new("=x")), None);
        assert_eq!(split_entry(OsStr::new("A")), None);
        assert_eq!(split_entry(OsStr::new("A=\0")), None);
    }
}
