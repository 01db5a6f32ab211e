//! Common parts of `nspawn-prepare`, `nspawn-run` and `nspawn-cleanup`.
//!
//! The modules are layers, from the lowest to the highest. Each imports only lower layers:
//!
//! | module | purpose |
//! | --- | --- |
//! | [`error`], [`text`], [`shell`] | error types and whose fault an error is; text for terminals; shell quoting |
//! | [`sys`] | safe wrappers of Linux interfaces, with all unsafe code |
//! | [`command`] | external programs, run with a time limit and with captured output |
//! | [`config`] | values of options, as plain data |
//! | [`machine`] | names, paths, processes and recorded state of machines |
//! | [`systemd`] | command lines and services of systemd |
//! | [`image`], [`agent`] | base images; the connection to the agent in a machine |
//! | [`lifecycle`] | locks, start, status, stop and removal of machines |
//! | [`gitlab`] | interface between GitLab Runner and a custom executor |
//! | [`cli`], [`exit_code`] | sources and values of options; exit statuses |
//! | [`report`] | results on stdout and diagnostics on stderr |

#![deny(unsafe_code)]

pub mod agent;
pub mod cli;
pub mod command;
pub mod config;
pub mod error;
pub mod exit_code;
pub mod gitlab;
pub mod image;
pub mod lifecycle;
pub mod machine;
pub mod report;
pub mod shell;
pub mod sys;
pub mod systemd;
pub mod text;
