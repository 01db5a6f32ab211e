//! Safe wrappers of Linux interfaces. They contain all unsafe code of this crate.

pub mod bpf;
pub mod call_filter;
pub mod cgroup;
pub mod clock;
pub mod core_limit;
pub mod credentials;
pub mod environment;
pub mod filter_recording;
pub mod fork;
pub mod fs;
pub mod glob;
pub mod idmapped_mount;
pub mod inotify;
pub mod ioctl;
pub mod mountinfo;
pub mod namespace;
pub mod namespace_owner;
pub mod pidfd;
pub mod power_off;
pub mod process;
pub mod seccomp;
pub mod seccomp_listener;
pub mod signals;
pub mod socket;
pub mod wait;
