//! Tests on a stock Debian host: its own kernel, AppArmor with all profiles in force, core dumps that systemd takes,
//! and every cgroup controller. They change the whole host, so they run one after the other in a virtual machine that
//! is thrown away afterwards (`tests/vm`), and nowhere else.

// A test stops at the first unexpected result.
#![allow(clippy::unwrap_used)]

mod outside;

mod apparmor;
mod cores;
mod limits;
mod network;
