//! Tests on a stock Debian host, with its own kernel, AppArmor with all profiles in force,
//! systemd-coredump, and all cgroup controllers. They change the whole host. Therefore they run one
//! after the other in a disposable virtual machine (`tests/vm`), and nowhere else.

// A test stops at the first unexpected result.
#![allow(clippy::unwrap_used)]

mod outside;

mod apparmor;
mod cores;
mod limits;
mod network;
mod pools;
mod services;
