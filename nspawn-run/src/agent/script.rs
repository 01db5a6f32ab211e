//! The script of a request, and the words that run a program.

use std::ffi::{OsStr, OsString};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nspawn_common::agent::request::Program;
use nspawn_common::command;
use nspawn_common::machine::passwd::User;

/// Script of the host in a file of the machine, which is removed on drop.
///
/// The script is in a file so that its commands can read stdin.
pub struct Script {
    path: PathBuf,
    /// True if the first line names bash as the interpreter. Scripts of GitLab Runner do, but also
    /// run in a POSIX shell.
    wants_bash: bool,
}

impl Script {
    /// Writes the script to a file that `user` can run.
    pub fn write(text: &[u8], user: &User) -> Result<Self> {
        let first_line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let wants_bash = first_line.starts_with(b"#!") && first_line.ends_with(b"bash");
        let script = Self {
            path: format!("/run/nspawn-script-{}", std::process::id()).into(),
            wants_bash,
        };
        // A killed session with the same process ID may have left a file.
        let _ = fs::remove_file(&script.path);
        write_file(&script.path, text)
            .and_then(|()| chown(&script.path, Some(user.uid), Some(user.gid)))
            .context("can't write the script into the machine")?;
        Ok(script)
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn write_file(path: &Path, text: &[u8]) -> std::io::Result<()> {
    let mut file = OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o700)
        .open(path)?;
    file.write_all(text)
}

/// File to execute, and its arguments with the zeroth.
pub struct Words {
    pub program: OsString,
    pub arguments: Vec<OsString>,
}

impl Words {
    fn new(arguments: Vec<OsString>) -> Self {
        Self {
            program: arguments.first().cloned().unwrap_or_default(),
            arguments,
        }
    }

    /// Returns the words that run `program` for `user`. `script` is the file of its script.
    pub fn of_program(
        program: &Program,
        user: &User,
        script: Option<&Script>,
        has_terminal: bool,
    ) -> Self {
        match (program, script) {
            (Program::Command(words), _) => Self::new(words.clone()),
            (Program::Script(_, interpreter), Some(script)) => Self::of_script(script, interpreter),
            _ if has_terminal => Self::login_shell(user),
            _ => Self::new(vec![user.shell.clone()]),
        }
    }

    fn of_script(script: &Script, interpreter: &[OsString]) -> Self {
        let path = script.path.clone().into_os_string();
        if !interpreter.is_empty() {
            return Self::new([interpreter, &[path][..]].concat());
        }
        if script.wants_bash && command::find_program("bash").is_none() {
            return Self::new(vec!["sh".into(), path]);
        }
        Self::new(vec![path])
    }

    // A dash before its name makes a shell a login shell (login(1)).
    fn login_shell(user: &User) -> Self {
        let name = Path::new(&user.shell).file_name().unwrap_or(&user.shell);
        Self {
            program: user.shell.clone(),
            arguments: vec![[OsStr::new("-"), name].into_iter().collect()],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user() -> User {
        User {
            name: "root".into(),
            uid: 0,
            gid: 0,
            groups: Vec::new(),
            home: "/root".into(),
            shell: "/bin/bash".into(),
        }
    }

    #[test]
    fn shell_on_a_terminal_is_a_login_shell() {
        let words = Words::of_program(&Program::Shell, &user(), None, true);
        assert_eq!(words.program, "/bin/bash");
        assert_eq!(words.arguments, ["-bash"]);
        let words = Words::of_program(&Program::Shell, &user(), None, false);
        assert_eq!(words.arguments, ["/bin/bash"]);
    }

    #[test]
    fn entrypoint_gets_the_script_as_last_argument() {
        let script = Script {
            path: "/nonexistent/script".into(),
            wants_bash: false,
        };
        let program = Program::Script(Vec::new(), vec!["/entry".into(), "-x".into()]);
        let words = Words::of_program(&program, &user(), Some(&script), false);
        assert_eq!(words.program, "/entry");
        assert_eq!(words.arguments, ["/entry", "-x", "/nonexistent/script"]);
        let program = Program::Script(Vec::new(), Vec::new());
        let words = Words::of_program(&program, &user(), Some(&script), false);
        assert_eq!(words.arguments, ["/nonexistent/script"]);
    }
}
