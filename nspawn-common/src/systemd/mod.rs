//! Command lines for systemd, and what systemd reports.

pub mod journal;
pub mod machined;
pub mod nspawn;
pub mod transient_unit;
