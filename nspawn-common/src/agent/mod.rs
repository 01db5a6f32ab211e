//! Communication between `nspawn-run` and its agent in a machine.

pub mod client;
pub mod protocol;
pub mod request;
