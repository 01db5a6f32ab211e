//! Machines that are started ahead of time.

pub mod fingerprint;
pub mod pool;
