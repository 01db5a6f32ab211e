//! The process that becomes the command.

use std::convert::Infallible;
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{
    Gid, Uid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, execvp, fchown, setgid, setgroups,
    setsid, setuid,
};
use nspawn_common::exit_code::Exit;
use nspawn_common::machine::passwd::User;
use nspawn_common::sys::fs::{NULL_DEVICE, is_null_device, is_regular_file};
use nspawn_common::sys::{environment, ioctl, signals};

use crate::agent::command_cgroup::CommandCgroup;
use crate::agent::login;
use crate::agent::script::Words;

/// Stdin, stdout and stderr of a command.
pub enum Stdio {
    Pipes([OwnedFd; 3]),
    Terminal(OwnedFd),
}

/// Properties of the process that becomes the command.
pub struct ExecRequest<'a> {
    pub cgroup: &'a CommandCgroup,
    pub stdio: Stdio,
    /// Let the command fail when it reads its stdin.
    pub has_unreadable_stdin: bool,
    pub user: &'a User,
    /// Working directory. The default is the user's home, or `/` if that does not exist.
    pub directory: Option<OsString>,
    pub environment: Vec<OsString>,
    pub words: Words,
}

/// Reason why a command did not start.
pub struct Refusal {
    pub exit: Exit,
    pub reason: String,
}

impl Refusal {
    /// Returns the refusal of a command for which the machine has no process left.
    pub fn exhausted(errno: Errno) -> Self {
        Self {
            exit: Exit::Exhausted,
            reason: format!("fork: {errno:?}"),
        }
    }

    /// Returns the refusal of a command whose process could not be created.
    pub fn of_fork(error: anyhow::Error) -> Self {
        match error.downcast_ref() {
            Some(errno @ (Errno::EAGAIN | Errno::ENOMEM)) => Self::exhausted(*errno),
            _ => error.into(),
        }
    }

    /// Returns the exit status as a byte, followed by the reason.
    pub fn encode(&self) -> Vec<u8> {
        [&[self.exit.code()], self.reason.as_bytes()].concat()
    }

    /// Decodes the output of [`Refusal::encode`]. Returns `None` if there is none.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (code, reason) = bytes.split_first()?;
        Some(Self {
            exit: Exit::from_refusal(*code),
            reason: String::from_utf8_lossy(reason).into_owned(),
        })
    }
}

impl From<anyhow::Error> for Refusal {
    fn from(error: anyhow::Error) -> Self {
        Self {
            exit: Exit::RunFailure,
            reason: format!("{error:#}"),
        }
    }
}

/// Executes the command. This process was just forked and has a single thread.
pub fn become_command(request: ExecRequest) -> Result<Infallible, Refusal> {
    setsid().context("can't start a session")?;
    set_stdio(&request.stdio, request.user).context("can't set up stdin, stdout and stderr")?;
    if request.has_unreadable_stdin {
        set_unreadable_stdin().context("can't set up stdin")?;
    }
    signals::reset_all().context("can't reset signals")?;
    umask(Mode::from_bits_truncate(0o022));
    set_environment(&request);
    become_user(request.user)
        .with_context(|| format!("can't become user {:?}", request.user.name))?;
    enter_directory(&request)?;
    execute(&request.words)
}

fn set_stdio(stdio: &Stdio, user: &User) -> Result<()> {
    let [stdin, stdout, stderr] = match stdio {
        Stdio::Pipes([stdin, stdout, stderr]) => [stdin, stdout, stderr],
        Stdio::Terminal(terminal) => {
            ioctl::set_controlling_terminal(terminal).context("can't take the terminal")?;
            [terminal; 3]
        }
    };
    let null_device = null_device_for(stdin);
    for fd in [stdin, stdout, stderr] {
        // As the owner, the command can open /dev/stderr and the like by name.
        let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
        fchown(fd, Some(uid), Some(gid))?;
    }
    dup2_stdin(null_device.as_ref().map_or(stdin.as_fd(), File::as_fd))?;
    dup2_stdout(stdout)?;
    dup2_stderr(stderr)?;
    Ok(())
}

// Opens the machine's /dev/null in place of the empty file by which the host requests it. Without
// that device, the command reads the file. Only the call of open(2) must not block, on what may be a
// FIFO: Ansible refuses a stdin that does not block.
fn null_device_for(stdin: &OwnedFd) -> Option<File> {
    if !is_regular_file(stdin) {
        return None;
    }
    let file = File::options()
        .read(true)
        .custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits())
        .open(NULL_DEVICE)
        .ok()?;
    fcntl(&file, FcntlArg::F_SETFL(OFlag::empty())).ok()?;
    is_null_device(&file).then_some(file)
}

// Reading a directory fails, also if the command opens it again as /dev/stdin.
fn set_unreadable_stdin() -> Result<()> {
    Ok(dup2_stdin(File::open("/")?)?)
}

// Replaces the environment by that of a login, and adds the requested variables.
fn set_environment(request: &ExecRequest) {
    let login = login::variables(request.user);
    environment::clear_variables();
    let login = login.iter().map(|(name, value)| (&**name, &**value));
    let requested = request
        .environment
        .iter()
        .filter_map(|entry| split_entry(entry));
    for (name, value) in login.into_iter().chain(requested) {
        // `split_entry` returns no empty name, for which this would panic.
        environment::set_variable(name, value);
    }
}

// Returns the name and the value of a variable, or `None` for an entry that is not a variable.
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

fn enter_directory(request: &ExecRequest) -> Result<()> {
    match &request.directory {
        Some(directory) => chdir(Path::new(directory))
            .with_context(|| format!("can't enter the directory {directory:?}")),
        None => chdir(Path::new(&request.user.home))
            .or_else(|_| chdir("/"))
            .context("can't enter a directory"),
    }
}

fn execute(words: &Words) -> Result<Infallible, Refusal> {
    let program = c_string(&words.program)?;
    let arguments = words
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
        reason: format!("can't run {:?}: {}", words.program, errno.desc()),
    })
}

fn c_string(word: &OsStr) -> Result<CString> {
    CString::new(word.to_owned().into_vec())
        .map_err(|_| anyhow!("can't run the command: an argument contains a NUL byte"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_without_a_name_or_with_a_nul_byte_are_dropped() {
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
