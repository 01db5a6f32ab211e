//! Tests of `nspawn-image`, which creates images, updates them, and moves them from host to host.
//!
//! | module | subject |
//! | --- | --- |
//! | [`making`] | sources of an image, and its description |
//! | [`playbooks`] | customization by Ansible, and packages |
//! | [`versions`] | adding, withdrawing and deleting versions |
//! | [`updates`] | updates while jobs run, broken updates, killed updates |
//! | [`transfer`] | transfer from one host to another |
//! | [`databases`] | images for the services of jobs |
//! | [`hostile`] | trees with links to the host |
//! | [`btrfs`] | versions as btrfs subvolumes |
//! | [`installed`] | the installed program and its unit |
//!
//! `NSPAWN_TESTS_LONG=yes` in the environment (`scripts/test --long`) repeats tests with random
//! moments more often.

// A test stops at the first unexpected result.
#![allow(clippy::unwrap_used)]

mod btrfs;
mod databases;
mod hostile;
mod installed;
mod lab;
mod making;
mod nesting;
mod playbooks;
mod transfer;
mod updates;
mod versions;
