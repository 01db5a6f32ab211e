//! End-to-end tests: the real programs against the real systemd of a test host.

// A test stops at what it did not expect.
#![allow(clippy::unwrap_used)]

mod actions;
mod approaches;
mod autopkgtest;
mod bad_input;
mod boot;
mod callers;
mod cell;
mod cells;
mod check_host;
mod commands;
mod documentation;
mod exec;
mod gitlab;
mod hostile;
mod images;
mod lifecycle;
mod networks;
mod standby;
mod tasks;
mod users;
mod walls;
