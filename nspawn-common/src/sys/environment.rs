//! Environment variables of this process, which must have a single thread to change them.
#![allow(unsafe_code)]

use std::env;
use std::ffi::OsStr;

use crate::sys::fork::assert_single_thread;

/// Sets a variable.
///
/// # Panics
/// If the name is empty or contains `=`, or if a text contains a NUL byte. In a debug build, also
/// if this process has several threads.
pub fn set_variable(name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) {
    assert_single_thread();
    // SAFETY: no other thread can read the environment at the same time.
    unsafe { env::set_var(name, value) };
}

/// Removes all variables.
///
/// # Panics
/// In a debug build, if this process has several threads.
pub fn clear_variables() {
    assert_single_thread();
    for (name, _) in env::vars_os() {
        // SAFETY: no other thread can read the environment at the same time.
        unsafe { env::remove_var(name) };
    }
}
