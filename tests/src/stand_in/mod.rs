//! A stand-in for the program `gitlab-runner`, where there is no real one: the commands that jobs and tests need of it,
//! with its options. Its `run-single` runs jobs as the [`sequencer`](crate::sequencer) does.
//!
//! Modelled on GitLab Runner 19.4 (`commands/`, `network/`). It differs in this: it knows servers by their numeric
//! address alone and without TLS, it tells the log sooner, and it masks nothing in it, so that a token that gets there
//! is seen.
//!
//! | module | holds |
//! | --- | --- |
//! | here | which command it is |
//! | [`flags`] | the options on its command line |
//! | [`server`] | what it says to GitLab |
//! | [`run_single`] | jobs, from the server to their end |
//! | [`trace`] | a job's log on its way to the server |
//! | [`helpers`] | what the scripts of jobs call: artifacts, caches |
//! | [`archive`] | their archives |
//! | [`files`] | which files are meant |

mod archive;
mod files;
mod flags;
mod helpers;
mod run_single;
mod server;
mod trace;

use std::process::ExitCode;

use anyhow::{Result, bail};

/// The program.
#[must_use]
pub fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match command(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("FATAL: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn command(words: &[String]) -> Result<()> {
    let Some((name, words)) = words.split_first() else {
        bail!("no command")
    };
    match &**name {
        "--version" | "-v" => println!("Version: a stand-in of nspawn-ci's tests"),
        "run-single" => run_single::run(words)?,
        "artifacts-uploader" => helpers::upload_artifacts(words)?,
        "artifacts-downloader" => helpers::download_artifacts(words)?,
        "cache-archiver" => helpers::archive_cache(words)?,
        "cache-extractor" => helpers::extract_cache(words)?,
        other => bail!("{other}: the stand-in has no such command"),
    }
    Ok(())
}
