//! Documents and sources that must agree: man pages and completions with the programs' options, the
//! page on troubleshooting with the programs' messages, and the imports of modules with their
//! layers. Also the form of the messages.

#![allow(clippy::unwrap_used)]

mod completions;
mod layers;
mod message_form;
mod messages;
mod page;
mod program;
mod script;
mod sources;
mod unsafe_code;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use clap_complete::Shell;
use nspawn_tests::skip;

use program::Program;

/// Environment variable with which the tests write the files that they otherwise compare.
const UPDATE: &str = "NSPAWN_TESTS_UPDATE";
const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Compares a file with its expected content, or writes the file.
fn compare(path: &Path, expected: &str) {
    if env::var_os(UPDATE).is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, expected).unwrap();
    }
    let found = fs::read_to_string(path).unwrap_or_default();
    assert!(
        found == expected,
        "{} differs from the programs' options; run: {UPDATE}=yes cargo test --package nspawn-tests --test documents",
        path.display()
    );
}

fn completion_file(program: &Program, shell: Shell) -> PathBuf {
    repository()
        .join("scripts/completions")
        .join(completions::file_name(program.name(), shell))
}

/// Returns whether a program is installed. A developer's system may lack a shell or groff, CI may
/// not.
fn is_installed(program: &str) -> bool {
    let done = Command::new("sh")
        .args(["-c", "command -v \"$0\" >/dev/null", program])
        .status();
    let is_installed = done.unwrap().success();
    if !is_installed {
        skip(&format!(
            "{program} is not installed; scripts/setup --for lint installs it"
        ));
    }
    is_installed
}

#[test]
fn man_pages_list_the_options() {
    for program in program::all() {
        let path = program.page();
        let text =
            fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        compare(&path, &page::with_options(&text, &program.documented));
    }
}

#[test]
fn completions_list_the_options() {
    for program in program::all() {
        for shell in SHELLS {
            compare(
                &completion_file(&program, shell),
                &completions::generate_for(&program.completed, shell),
            );
        }
    }
}

#[test]
fn man_pages_have_all_sections() {
    let sections = [
        "NAME",
        "SYNOPSIS",
        "DESCRIPTION",
        "OPTIONS",
        "EXIT STATUS",
        "EXAMPLES",
        "SEE ALSO",
    ];
    for program in program::all() {
        let text = fs::read_to_string(program.page()).unwrap();
        let missing: Vec<_> = sections
            .iter()
            .filter(|name| page::section(&text, name).is_none())
            .collect();
        assert!(missing.is_empty(), "{} has no {missing:?}", program.name());
    }
}

#[test]
fn every_help_has_an_example() {
    for program in program::all() {
        let help = program.documented.clone().render_long_help().to_string();
        assert!(
            program.page().starts_with(repository().join("scripts")) || help.contains("\nExample"),
            "{help}"
        );
    }
    let directories = ["scripts", "scripts/bin"].map(|directory| repository().join(directory));
    for script in directories
        .iter()
        .flat_map(|directory| fs::read_dir(directory).unwrap())
        .map(|entry| entry.unwrap().path())
    {
        let is_for_programs = script.extension().is_some();
        if is_for_programs || script.metadata().unwrap().mode() & 0o111 == 0 || script.is_dir() {
            continue;
        }
        let done = Command::new(&script).arg("--help").output().unwrap();
        let help = String::from_utf8(done.stdout).unwrap();
        assert!(
            done.status.success() && help.contains("\nExample"),
            "{}: {help}",
            script.display()
        );
    }
}

#[test]
fn man_pages_render_without_warnings() {
    if !is_installed("man") || !is_installed("groff") {
        return;
    }
    for program in program::all() {
        let mut man = Command::new("man");
        man.args([
            "--warnings",
            "--no-justification",
            "--encoding=utf8",
            "--local-file",
        ])
        .arg(program.page());
        let done = man
            .env("MANROFFSEQ", "")
            .env("MANWIDTH", "80")
            .env("LC_ALL", "C.UTF-8")
            .output()
            .unwrap();
        let (out, err) = (
            String::from_utf8_lossy(&done.stdout),
            String::from_utf8_lossy(&done.stderr),
        );
        assert!(
            done.status.success() && err.is_empty(),
            "{}: {err}",
            program.name()
        );
        assert!(out.contains(&format!("{} - ", program.name())), "{out}");
    }
}

#[test]
fn shells_load_the_completions() {
    // Some shells write to the home directory.
    let home = env::temp_dir().join(format!("documents-{}", std::process::id()));
    fs::create_dir_all(&home).unwrap();
    for (shell, name) in SHELLS.into_iter().zip(["bash", "zsh", "fish"]) {
        for program in program::all().into_iter().filter(|_| is_installed(name)) {
            let line = completions::proof(program.name(), shell, &completion_file(&program, shell));
            let mut command = Command::new(name);
            command
                .args(completions::without_start_up_files(shell))
                .args(["-c", &line]);
            let done = command.env("HOME", &home).output().unwrap();
            let (out, err) = (
                String::from_utf8_lossy(&done.stdout),
                String::from_utf8_lossy(&done.stderr),
            );
            assert!(
                out.contains("--help") && err.is_empty(),
                "{name}: {}: {out}{err}",
                program.name()
            );
            assert!(
                !out.contains("--internal"),
                "{name}: {}: {out}",
                program.name()
            );
        }
    }
    fs::remove_dir_all(home).unwrap();
}
