//! Tests of `nspawn-image`: how images are made, change, and go from host to host.
//!
//! | module | what it tries |
//! | --- | --- |
//! | [`making`] | where an image comes from, and its description |
//! | [`playbooks`] | customization by Ansible, and packages |
//! | [`versions`] | versions that come, go back and are deleted |
//! | [`updates`] | updates while jobs come and go, broken ones, killed ones |
//! | [`transfer`] | from one host to another |
//! | [`databases`] | images that jobs have services of |
//! | [`hostile`] | a tree that wants to be written through |
//! | [`btrfs`] | versions that are subvolumes |
//! | [`installed`] | the installed program and its unit |
//!
//! `NSPAWN_TESTS_LONG=yes` in the environment (`scripts/test --long`) tries more often what is left to chance.

// A test stops at what it did not expect.
#![allow(clippy::unwrap_used)]

mod btrfs;
mod databases;
mod hostile;
mod installed;
mod lab;
mod making;
mod playbooks;
mod transfer;
mod updates;
mod versions;
