//! Creation of a machine: its specification, the plan, and running the plan.

pub mod plan;
pub mod queue;
pub mod run;
pub mod spec;
pub mod start_commands;
pub mod state;
pub mod step;
