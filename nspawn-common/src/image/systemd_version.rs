//! The version of an image's systemd, without running it.

use std::os::fd::AsFd;

use crate::sys::fs::read_in_root;

/// Paths of systemd, in the order in which systemd-nspawn looks for it.
pub const PROGRAMS: [&str; 2] = ["usr/lib/systemd/systemd", "lib/systemd/systemd"];

/// First version that boots in a machine.
///
/// systemd knows cgroup v2 since version 230. systemd-nspawn recognizes that by a file that only
/// version 231 and newer ones have, and otherwise mounts cgroup v1.
pub const OLDEST: u32 = 231;

/// Name of a library that systemd needs since version 231. The version is a part of the name.
const LIBRARY: &[u8] = b"libsystemd-shared-";
/// Beginning of the text that an older systemd prints for `--version`.
const NAME: &[u8] = b"\0systemd ";
/// Size of the part of the program in which the names of its libraries are (20 KiB in version 262).
const LIBRARIES: u64 = 64 << 10;
/// Maximum size of a program that is searched. That of version 219 has 1.5 MiB.
const LIMIT: u64 = 8 << 20;

/// Returns the version of the systemd in the tree `root`; `None` if its program does not show it.
#[must_use]
pub fn read(root: impl AsFd) -> Option<u32> {
    let read = |limit| {
        PROGRAMS
            .iter()
            .find_map(|path| read_in_root(&root, path, limit).ok())
    };
    let version = number_after(&read(LIBRARIES)?, LIBRARY, b".-");
    version.or_else(|| {
        let program = read(LIMIT)?;
        let version = number_after(&program, LIBRARY, b".-");
        version.or_else(|| number_after(&program, NAME, b"\0\n "))
    })
}

/// Returns the number that is between `prefix` and one of the bytes of `ends`.
fn number_after(text: &[u8], prefix: &[u8], ends: &[u8]) -> Option<u32> {
    let places = text
        .windows(prefix.len())
        .enumerate()
        .filter(|(_, window)| *window == prefix)
        .map(|(place, _)| &text[place + prefix.len()..]);
    places.into_iter().find_map(|rest| {
        let length = rest.iter().take(4).take_while(|byte| byte.is_ascii_digit());
        let (digits, rest) = rest.split_at(length.count());
        let is_whole = ends.contains(rest.first()?);
        let number = std::str::from_utf8(digits).ok()?.parse().ok()?;
        is_whole.then_some(number)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_is_between_its_prefix_and_an_end() {
        let library = |text: &[u8]| number_after(text, LIBRARY, b".-");
        assert_eq!(library(b"\0libsystemd-shared-252.so\0"), Some(252));
        assert_eq!(
            library(b"\0libsystemd-shared-253.12-1.fc38.so\0"),
            Some(253)
        );
        for other in ["", "libsystemd-shared-", "libsystemd-shared-x.so"] {
            assert_eq!(library(other.as_bytes()), None, "{other}");
        }
        let name = |text: &[u8]| number_after(text, NAME, b"\0\n ");
        assert_eq!(name(b"\0systemd 219\0"), Some(219));
        assert_eq!(
            name(b"\0systemd 5x\0systemd 229 running in %ssystem mode"),
            Some(229)
        );
        for other in ["\0systemd 219", "systemd 219\0", "\0systemd 2190000000\0"] {
            assert_eq!(name(other.as_bytes()), None, "{other}");
        }
    }
}
