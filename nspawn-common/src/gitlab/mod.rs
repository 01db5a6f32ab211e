//! Interface between GitLab Runner and a custom executor.
//!
//! The facts come from GitLab Runner's documentation of the custom executor, and from its source
//! (`executors/custom/`, version 19.4).

pub mod environment;
pub mod job;
pub mod log_section;
pub mod services;
pub mod variables;
pub mod wishes;

pub use environment::{ExitCodes, exit_code_file, is_active, store_exit_code, variable};
pub use job::Job;
pub use services::Service;
