//! The fault suite: what goes wrong, how often it was tried, how often the programs did right, and
//! what was left behind.
//!
//! `--long` tries more often, and what takes long. Everything is done to the host that it runs in,
//! which must have no other machines meanwhile.
//!
//! | module | what goes wrong |
//! | --- | --- |
//! | [`deaths`] | the machine dies under a command |
//! | [`ends`] | a command ends in every way there is |
//! | [`guest`] | the machine's own services fail under a command |
//! | [`liars`] | the agent is not what it was |
//! | [`stops`] | a job is cancelled that will not end |
//! | [`kills`] | these programs are killed at any moment |
//! | [`full`] | the host runs out of something |
//! | [`crowds`] | all at once |
//! | [`bulk`] | many bytes |
//! | [`layers`] | an enemy made the layer |

// A try stops at what it did not expect.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bulk;
mod crowds;
mod deaths;
mod ends;
mod full;
mod guest;
mod kills;
mod layers;
mod liars;
mod stops;
mod suite;

use std::process::ExitCode;

use suite::Suite;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments
        .first()
        .is_some_and(|first| first == liars::OPTION)
    {
        liars::lie(&arguments[1]);
    }
    let is_long = arguments.iter().any(|argument| argument == "--long");
    let filters: Vec<_> = arguments
        .into_iter()
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    let mut suite = Suite::new(is_long, filters);
    for group in [
        deaths::rows,
        ends::rows,
        guest::rows,
        liars::rows,
        stops::rows,
        kills::rows,
        full::rows,
        crowds::rows,
        bulk::rows,
        layers::rows,
    ] {
        group(&mut suite);
    }
    suite.finish()
}
