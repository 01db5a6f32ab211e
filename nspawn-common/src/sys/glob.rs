//! Shell patterns (fnmatch(3)).
#![allow(unsafe_code)]

use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;

use nix::libc;

/// Returns whether `text` matches the shell pattern. `*` also matches `/`.
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
    fn patterns_match_whole_texts() {
        assert!(matches("debian-*".as_ref(), "debian-12"));
        assert!(matches("*/node:*".as_ref(), "x.example/a/node:22"));
        assert!(!matches("debian".as_ref(), "debian-12"));
        assert!(!matches("a\0".as_ref(), "a"));
    }
}
