//! The parts of a machine that only GitLab jobs need.

pub mod attach;
pub mod cache;
pub mod config_stage;
pub mod job_limits;
pub mod policy;
pub mod runner_binary;
pub mod server_lookup;
