//! Stand-in for GitLab Runner, which calls the programs as its custom executor does.
//!
//! It is modelled on GitLab Runner 19.4 (`executors/custom/`, `common/build.go`, `shells/`). It is
//! stricter in two points. A driver that leaves a process behind which holds the job's log open
//! fails the test, while GitLab Runner waits. A `BUILD_EXIT_CODE_FILE` that does not hold a number
//! fails the test as well.
//!
//! Tests use it in two ways: [`Runner::run`] runs a [`Job`](crate::Job) directly, and [`program`]
//! takes jobs from a server.
//!
//! | module | contents |
//! | --- | --- |
//! | `runner` | settings of a runner, preparation with its retries: [`Runner`] |
//! | `received` | job as the runner receives it |
//! | `interventions` | interventions of tests in jobs: [`When`], [`Reaction`], [`Response`] |
//! | `attempt` | one attempt at a job, stage by stage: [`Attempt`] |
//! | `stages` | order of the sub-stages of run |
//! | `driver` | process of a driver: its streams, time limit and end |
//! | `sections` | sections of a job's log |
//! | `report` | results: [`Report`], [`Record`], [`Outcome`] |
//! | `environment` | environment variables of a driver |
//! | `workspace` | temporary directory of an attempt |
//! | `scripts` | scripts that GitLab Runner generates |
//! | `sources`, `archives` | parts of these scripts for git, and for caches and artifacts |
//! | `remote` | reader of a job's log, who may also cancel the job |
//! | [`program`] | the program `gitlab-runner` |

mod archives;
mod attempt;
mod driver;
mod environment;
mod interventions;
pub mod program;
mod received;
mod remote;
mod report;
mod runner;
mod scripts;
mod sections;
mod sources;
mod stages;
#[cfg(test)]
mod tests;
mod workspace;

pub use attempt::{Attempt, Moment};
pub use interventions::{Interventions, Reaction, Response, When};
pub use report::{Failure, Interruption, Outcome, Record, Report};
pub use runner::{Programs, Runner};

pub use crate::job::Job;
