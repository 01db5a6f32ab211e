//! A machine: its name, its files and units, others' units of the same names, its processes and its recorded state.

pub mod mounts;
pub mod name;
pub mod namespaces;
pub mod output;
pub mod passwd;
pub mod paths;
pub mod processes;
pub mod state;
pub mod unit_files;
