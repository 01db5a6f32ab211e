//! Options of the programs: their sources and their values.

pub mod sources;
pub mod values;
