//! End-to-end tests: the real programs against the real systemd of a test host.

// A test panics at the first unexpected result.
#![allow(clippy::unwrap_used)]

mod autopkgtest;
mod bad_input;
mod boot;
mod caller_environment;
mod cell;
mod check_host;
mod commands;
mod devices;
mod documentation;
mod exec;
mod github_actions;
mod gitlab;
mod hostile_job;
mod images;
mod init_layer_matrix;
mod isolation;
mod lifecycle;
mod login;
mod name_in_use;
mod networks;
mod prepare_options;
mod process_limit;
mod removal;
mod run_with_image;
mod standby;
mod system_calls;
mod systemd_interop;
mod users;
mod wait_online;
