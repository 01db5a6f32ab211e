//! Real CI systems from Debian's packages, whose jobs use the programs. Each is configured with the
//! files of `scripts/recipes.d`, as a user would do it.
//!
//! | module | system |
//! | --- | --- |
//! | [`buildbot`] | a master and a worker, whose builds have a step for each of the three programs |
//! | [`debci`] | Debian's tests of its packages, with `autopkgtest-virt-nspawn-ci` |
//! | [`slurm`] | a cluster of one node, with `nspawn-exec` as a job |

// A test stops at the first unexpected result.
#![allow(clippy::unwrap_used)]

mod buildbot;
mod debci;
mod host;
mod slurm;
