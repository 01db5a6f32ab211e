//! Services of GitLab jobs.

pub mod etc_hosts;
pub mod network;
pub mod readiness;
pub mod spawn;
