//! Images: finding one by its name, choosing its newest version, and checking it.

pub mod architecture;
mod binfmt;
pub mod lookup;
pub mod requirements;
pub mod stack;
pub mod systemd_version;
pub mod version;
