//! The protocol between `nspawn-run` and its agent in the machine.

pub mod protocol;
