//! Images: finding one by its name, and choosing its newest version.

pub mod lookup;
pub mod version;
