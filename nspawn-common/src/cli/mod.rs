//! Options from argument files, environment variables and the command line.

pub mod sources;
