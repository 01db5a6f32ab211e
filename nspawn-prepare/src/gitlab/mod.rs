//! Features of a machine that only GitLab jobs need.
//!
//! | module | contents |
//! | --- | --- |
//! | [`job_policy`] | images and services that a job may use |
//! | [`job_limits`] | limits that a job may lower |
//! | [`runner_binary`] | the gitlab-runner program in the machine |
//! | [`cache`] | the caches of projects |
//! | [`attach`] | attaches the cache and the services to the running machine |
//! | [`config_stage`] | the config stage, and lines for the job's log |
//! | [`ignored_wishes`] | lines about wishes of a job that have no effect |
//! | [`server_lookup`] | a warning if the GitLab server runs on this host |

pub mod attach;
pub mod cache;
pub mod config_stage;
pub mod ignored_wishes;
pub mod job_limits;
pub mod job_policy;
pub mod runner_binary;
pub mod server_lookup;
