//! A machine: its name, its files and units, and its recorded state.

pub mod name;
pub mod paths;
pub mod state;
