//! Interpreters by which the host's kernel runs programs of other architectures (binfmt_misc.rst).

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The kernel's list: a file for each interpreter.
const LIST: &str = "/proc/sys/fs/binfmt_misc";
/// Files there that are no interpreters.
const CONTROLS: [&str; 2] = ["register", "status"];

/// An interpreter in the kernel's list.
#[derive(Debug, PartialEq, Eq)]
pub struct Interpreter {
    /// Path of the program.
    pub path: PathBuf,
    /// Set if the kernel holds the program open. Otherwise the image must contain it.
    pub is_open: bool,
}

/// A line of the list.
struct Entry {
    interpreter: Interpreter,
    offset: usize,
    magic: Vec<u8>,
    mask: Vec<u8>,
}

/// Returns the interpreter by which the kernel runs a file that begins with these bytes.
#[must_use]
pub fn find(beginning: &[u8]) -> Option<Interpreter> {
    let status = fs::read_to_string(Path::new(LIST).join("status")).ok()?;
    if status.trim() != "enabled" {
        return None;
    }
    let entries = fs::read_dir(LIST).ok()?.flatten();
    let mut entries = entries
        .filter(|entry| !CONTROLS.map(OsStr::new).contains(&&*entry.file_name()))
        .filter_map(|entry| Entry::parse(&fs::read(entry.path()).ok()?));
    let entry = entries.find(|entry| entry.fits(beginning))?;
    Some(entry.interpreter)
}

impl Entry {
    /// Parses the kernel's description. Returns `None` for an entry that is disabled, or that
    /// applies to names of files.
    fn parse(text: &[u8]) -> Option<Self> {
        let mut lines = text.split(|byte| *byte == b'\n');
        if lines.next() != Some(b"enabled") {
            return None;
        }
        let lines: Vec<_> = lines.collect();
        let value = |key: &[u8]| lines.iter().find_map(|line| line.strip_prefix(key));
        let magic = bytes(value(b"magic ")?)?;
        Some(Self {
            interpreter: Interpreter {
                path: OsStr::from_bytes(value(b"interpreter ")?).into(),
                is_open: value(b"flags:")?.contains(&b'F'),
            },
            offset: std::str::from_utf8(value(b"offset ")?).ok()?.parse().ok()?,
            mask: value(b"mask ").map_or_else(|| Some(vec![0xff; magic.len()]), bytes)?,
            magic,
        })
    }

    fn fits(&self, beginning: &[u8]) -> bool {
        let masked = |bytes: &[u8]| -> Vec<u8> {
            bytes
                .iter()
                .zip(&self.mask)
                .map(|(byte, mask)| byte & mask)
                .collect()
        };
        let part = beginning.get(self.offset..).unwrap_or_default();
        part.len() >= self.magic.len() && masked(part) == masked(&self.magic)
    }
}

/// Returns the bytes of hexadecimal digits.
fn bytes(digits: &[u8]) -> Option<Vec<u8>> {
    let digits = std::str::from_utf8(digits)
        .ok()
        .filter(|it| it.is_ascii())?;
    let pairs = (0..digits.len()).step_by(2);
    pairs
        .map(|place| u8::from_str_radix(digits.get(place..place + 2)?, 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const AARCH64: &str = "enabled\ninterpreter /usr/libexec/qemu binfmt/aarch64\nflags: POF\noffset 1\n\
                           magic 454c46\nmask ffffdf\n";

    #[test]
    fn entries_fit_by_magic_and_mask() {
        let entry = Entry::parse(AARCH64.as_bytes()).unwrap();
        assert_eq!(
            entry.interpreter,
            Interpreter {
                path: "/usr/libexec/qemu binfmt/aarch64".into(),
                is_open: true
            }
        );
        assert!(entry.fits(b"\x7fELF\x02"));
        assert!(entry.fits(b"\x7fELf"));
        for other in [&b"\x7fELG"[..], b"\x7fEL", b"", b"ELF"] {
            assert!(!entry.fits(other), "{other:?}");
        }
    }

    #[test]
    fn other_entries_are_passed_over() {
        let unmasked = AARCH64.replace("mask ffffdf\n", "").replace("POF", "P");
        let entry = Entry::parse(unmasked.as_bytes()).unwrap();
        assert!(!entry.interpreter.is_open && !entry.fits(b"\x7fELf"));
        for text in [
            String::new(),
            AARCH64.replace("enabled", "disabled"),
            AARCH64.replace("magic 454c46", "extension .jar"),
            AARCH64.replace("454c46", "454c4"),
            AARCH64.replace("454c46", "\u{e4}\u{e4}"),
        ] {
            assert!(Entry::parse(text.as_bytes()).is_none(), "{text}");
        }
    }
}
