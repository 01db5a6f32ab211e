//! One module for each way to call the program.

pub mod exec;
