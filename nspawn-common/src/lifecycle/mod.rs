//! Starting, listing, keeping, stopping and removing machines.

pub mod caller;
pub mod deferred_unmount;
pub mod lock;
pub mod namespaces;
pub mod retention;
pub mod ssh;
pub mod status;
pub mod uid_range;
pub mod unmount;
pub mod usage;
