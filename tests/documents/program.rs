//! The programs that have man pages and completions.

use std::path::PathBuf;

use clap::Command;

use crate::{repository, script};

/// Names of the scripts with a single command, and of their files.
const SCRIPTS: [(&str, &str); 5] = [
    ("nspawn-exec", "nspawn-exec"),
    ("autopkgtest-virt-nspawn-ci", "autopkgtest-virt-nspawn-ci"),
    ("nspawn-check-host", "check-host"),
    ("nspawn-gitlab-runner-config", "gitlab-runner-config"),
    ("nspawn-github-actions-hook", "github-actions-hook"),
];

/// A program with a man page and completions.
pub struct Program {
    /// The definition for the man page.
    pub documented: Command,
    /// The definition for completions.
    pub completed: Command,
    directory: &'static str,
}

impl Program {
    fn new(directory: &'static str, command: Command) -> Self {
        Self {
            documented: command.clone(),
            completed: command,
            directory,
        }
    }

    pub fn name(&self) -> &str {
        self.documented.get_name()
    }

    pub fn page(&self) -> PathBuf {
        repository()
            .join(self.directory)
            .join(format!("{}.1", self.name()))
    }
}

pub fn all() -> Vec<Program> {
    let images = Program {
        documented: script::definition("nspawn-image", "nspawn-image"),
        completed: script::with_commands("nspawn-image"),
        directory: "scripts/man",
    };
    let mut programs = vec![
        Program::new("nspawn-prepare", nspawn_prepare::command()),
        Program::new("nspawn-run", nspawn_run::command()),
        Program::new("nspawn-cleanup", nspawn_cleanup::command()),
        images,
    ];
    let scripts = SCRIPTS.map(|(name, file)| script::definition(name, file));
    programs.extend(scripts.map(|script| Program::new("scripts/man", script)));
    programs
}
