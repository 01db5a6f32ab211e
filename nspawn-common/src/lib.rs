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

pub mod args;
pub mod caller;
mod choice;
pub mod clock;
mod discard;
pub mod exit;
pub mod gitlab;
pub mod image;
pub mod interrupt;
pub mod journal;
pub mod keep;
pub mod lifecycle;
pub mod lock;
mod manager;
pub mod modes;
pub mod mounts;
pub mod name;
pub mod network;
pub mod nspawn;
pub mod owner;
pub mod paths;
pub mod registration;
pub mod ssh;
pub mod state;
pub mod subvolumes;
pub mod tool;
pub mod unit;
pub mod usage;
pub mod users;
pub mod versions;
pub mod wire;
pub mod words;
