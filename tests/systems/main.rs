//! Real CI systems, of Debian's packages, drive the programs. Each is set up as a user would do it, by the files of
//! `scripts/recipes.d`.
//!
//! | module | what it drives |
//! | --- | --- |
//! | [`buildbot`] | a master and a worker: the three programs as steps of a build |
//! | [`debci`] | Debian's tests of its packages: `autopkgtest-virt-nspawn-ci` |
//! | [`slurm`] | a cluster of one node: `nspawn-exec` as a job |

// A test stops at the first unexpected result.
#![allow(clippy::unwrap_used)]

mod buildbot;
mod debci;
mod host;
mod slurm;
