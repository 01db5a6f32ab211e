//! Safe wrappers of Linux interfaces.

pub mod btrfs;
pub mod cgroup;
pub mod clock;
pub mod fs;
pub mod idmapped_mount;
pub mod mountinfo;
pub mod namespace;
pub mod process;
pub mod signals;
