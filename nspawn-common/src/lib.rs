//! What `nspawn-prepare`, `nspawn-run` and `nspawn-cleanup` share.
//!
//! | module | holds |
//! | --- | --- |
//! | [`name`], [`paths`], [`state`] | what a machine is called, where its things are, what is written down about it |
//! | [`image`], [`versions`] | finding base images and judging whether they can boot |
//! | [`modes`] | what runs as a machine's PID 1, and where its writes go |
//! | [`unit`], [`nspawn`] | the systemd command lines, as pure functions |
//! | [`users`], [`network`] | what keeps a machine from the host and from the others |
//! | [`tool`], [`manager`] | running those command lines, bounded in time and output, also while systemd is upgraded |
//! | [`clock`] | the clocks that bounds are measured by |
//! | [`caller`] | what the unit that these programs run in takes from them |
//! | [`interrupt`] | being asked to end while one of them runs |
//! | [`lock`], [`owner`], [`lifecycle`], [`keep`], [`discard`], [`mounts`], [`subvolumes`], [`registration`] | who may touch a machine, who owns it, and removing it without a trace |
//! | [`ssh`] | `ssh machine/NAME` |
//! | [`usage`], [`journal`] | what a machine has used, and what it said |
//! | [`wire`] | the messages between `nspawn-run` and its agent in the machine |
//! | [`gitlab`] | the environment that GitLab Runner gives a custom executor |
//! | [`args`], [`choice`], [`exit`], [`words`] | options from files and environment, words for their values, exit statuses, shell quoting |

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
