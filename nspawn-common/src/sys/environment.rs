//! Environment variables of this process.
#![allow(unsafe_code)]

use crate::sys::fork::assert_single_thread;

/// Sets a variable in the environment of this process, which must have a single thread.
///
/// # Panics
/// In a debug build, if this process has several threads.
pub fn set_variable(name: &str, value: &str) {
    assert_single_thread();
    // SAFETY: no other thread can read the environment at the same time.
    unsafe { std::env::set_var(name, value) };
}
