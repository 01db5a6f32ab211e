//! Standby machines: machines that are started ahead of time, and are each taken over by one
//! `nspawn-prepare`.

pub mod fingerprint;
pub mod machines;
pub mod pool;
pub mod takeover;
