//! Library of the end-to-end tests.
//!
//! | module | contents |
//! | --- | --- |
//! | `command` | programs that run to their end, with assertions on their results: [`Done`], [`call`], [`sh`] |
//! | `background` | programs that run while a test goes on: [`BackgroundCommand`] |
//! | `machine` | machines: [`Machine`] |
//! | `leftovers` | leftovers of machines on the host: [`left_of`], [`remove_stale`] |
//! | `fixtures` | packages, data and shell functions |
//! | [`harness`] | harness of suites that print tables |
//! | `job` | jobs, as GitLab describes them to runners: [`Job`] |
//! | [`gitlab_server`] | stand-in for GitLab |
//! | [`gitlab_runner`] | stand-in for GitLab Runner |
//! | `http`, `multipart` | HTTP between the two |
//! | `program` | frame of the programs of this crate: [`run_program`] |

mod background;
mod command;
mod fixtures;
pub mod gitlab_runner;
pub mod gitlab_server;
pub mod harness;
mod http;
mod job;
mod leftovers;
mod machine;
mod multipart;
mod program;

pub use background::BackgroundCommand;
pub use command::{Done, call, expect_lines, expect_message, finish, first_line, sh, wait_until};
pub use fixtures::{FLAGS, install, random, scratch, skip};
pub use job::Job;
pub use leftovers::{keep_stale, left_of, remove_stale};
pub use machine::{Machine, SIGNALS, image};
pub use program::run_program;
