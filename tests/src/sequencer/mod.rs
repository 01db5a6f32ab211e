//! A stand-in for GitLab Runner: calls the programs found on PATH as its custom executor does, and
//! judges their exit statuses as it does.
//!
//! Modelled on GitLab Runner 19.4 (`executors/custom/`, `common/build.go`, `shells/`). It is
//! stricter in this: a driver that leaves a process behind with the job's log open fails the test
//! (the real runner would wait), and so does a `BUILD_EXIT_CODE_FILE` that holds no number.
//!
//! | module | holds |
//! | --- | --- |
//! | [`job`] | what GitLab sends: [`Job`] |
//! | [`sent`] | the same, from the words of its API |
//! | [`runner`] | the settings of a [`Runner`], and its retries |
//! | [`attempt`] | one attempt at a job, stage by stage: [`Attempt`] |
//! | [`stages`] | the order of run's sub-stages |
//! | [`report`] | what came of it: [`Report`], [`Record`], [`Outcome`] |
//! | [`environment`] | the variables that a driver gets |
//! | [`workspace`] | the temporary directory, and the files that a driver is pointed to |
//! | [`scripts`] | the scripts that GitLab Runner generates |
//! | [`sources`], [`archives`] | what is in them of git, and of caches and artifacts |
//! | [`remote`] | the outside of a job: [`Remote`] |
//! | [`process`] | a driver's process: its streams, time limit and end |

mod archives;
mod attempt;
mod environment;
mod job;
mod process;
mod remote;
mod report;
mod runner;
mod scripts;
mod sent;
mod sources;
mod stages;
#[cfg(test)]
mod tests;
mod workspace;

pub use attempt::{Attempt, Moment};
pub use job::{Job, Response, Then, When};
pub use remote::Remote;
pub use report::{Failure, Interruption, Outcome, Record, Report};
pub use runner::{Programs, Runner};
