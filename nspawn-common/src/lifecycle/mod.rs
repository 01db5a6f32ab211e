//! Starting, listing, keeping, stopping and removing machines.

pub mod calling_unit;
pub mod deferred_unmount;
pub mod diagnosis;
pub mod fuse;
pub mod job_slice;
pub mod limit_enforcement;
pub mod limits;
pub mod list;
pub mod lock;
pub mod remove;
pub mod retention;
pub mod ssh;
pub mod stale;
pub mod start;
pub mod status;
pub mod stop;
pub mod uid_range;
pub mod unmount;
pub mod usage;
