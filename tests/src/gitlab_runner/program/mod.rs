//! Stand-in for the program `gitlab-runner`, for hosts without the real one.
//!
//! It has the commands that jobs and tests need, with the options of the real program. `run-single`
//! runs jobs as [`gitlab_runner`](crate::gitlab_runner) does.
//!
//! It is modelled on GitLab Runner 19.4 (`commands/`, `network/`), and differs in these points. It
//! accepts a server only by its numeric address and without TLS. It sends the log sooner. It does
//! not mask anything in the log, so that a test sees a token that gets there.
//!
//! | module | contents |
//! | --- | --- |
//! | here | choice of the command |
//! | `options` | options of the command line |
//! | `client` | requests to GitLab |
//! | `run_single` | `run-single`: jobs from the server, one after the other |
//! | `trace` | log of a job on its way to the server |
//! | `artifacts`, `cache` | commands that the scripts of jobs call |
//! | `zip_archive` | zip archives of artifacts and caches |
//! | `file_patterns` | patterns for files of artifacts and caches |

mod artifacts;
mod cache;
mod client;
mod file_patterns;
mod options;
mod run_single;
#[cfg(test)]
mod tests;
mod trace;
mod zip_archive;

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::program::run_program;

/// Runs the program.
pub fn main() -> ExitCode {
    run_program("FATAL", run_command)
}

fn run_command(words: &[String]) -> Result<()> {
    let Some((name, words)) = words.split_first() else {
        bail!("no command")
    };
    match &**name {
        "--version" | "-v" => println!("Version: a stand-in of nspawn-ci's tests"),
        "run-single" => run_single::run(words)?,
        "artifacts-uploader" => artifacts::upload(words)?,
        "artifacts-downloader" => artifacts::download(words)?,
        "cache-archiver" => cache::archive(words)?,
        "cache-extractor" => cache::extract(words)?,
        other => bail!("{other}: the stand-in has no such command"),
    }
    Ok(())
}
