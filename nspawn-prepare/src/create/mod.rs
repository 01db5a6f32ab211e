//! Creation of a machine: its specification, the steps, and running them.

pub mod diagnosis;
pub mod queue;
pub mod run;
pub mod spec;
pub mod start;
pub mod step;
