//! Shell patterns (fnmatch(3)).
#![allow(unsafe_code)]

use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;

use nix::libc;

/// Returns whether `text` matches the pattern. `*` also matches slashes. Text with a NUL byte matches nothing.
pub fn matches(pattern: &OsStr, text: &str) -> bool {
    let (Ok(pattern), Ok(text)) = (CString::new(pattern.as_bytes()), CString::new(text)) else {
        return false;
    };
    // SAFETY: fnmatch(3) reads two strings that end with NUL.
    unsafe { libc::fnmatch(pattern.as_ptr(), text.as_ptr(), 0) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn star_matches_slashes_too() {
        assert!(matches(OsStr::new("*/node:*"), "x.example/a/node:22"));
        assert!(matches(OsStr::new("debian-?"), "debian-1"));
        assert!(!matches(OsStr::new("debian-*"), "debian"));
        assert!(!matches(OsStr::new("*"), "a\0b"));
    }
}
