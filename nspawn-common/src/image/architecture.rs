//! Architectures: of this host, and of the programs in an image.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};

use crate::sys::fs::read_in_root;

/// Architectures whose programs this host runs, best first, by their names in systemd
/// (ConditionArchitecture= in systemd.unit(5)).
pub const OF_HOST: &[&str] = match std::env::consts::ARCH.as_bytes() {
    b"x86_64" => &["x86-64", "x86"],
    b"aarch64" => &["arm64", "arm"],
    _ => &[std::env::consts::ARCH],
};

/// Programs that show an image's architecture. The first one that the image has decides.
const PROGRAMS: [&str; 5] = [
    "bin/sh",
    "usr/bin/sh",
    "bin/busybox",
    "usr/lib/systemd/systemd",
    "lib/systemd/systemd",
];
/// Name of all architectures that are not known here.
const UNKNOWN: &str = "an unknown architecture";
/// Number of bytes by which the kernel decides how to run a file (`BINPRM_BUF_SIZE` in binfmts.h).
const BEGINNING: u64 = 256;

/// Beginning of a program, by which the kernel decides how to run it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beginning(Vec<u8>);

impl Beginning {
    /// Reads the beginning of a program of the image whose tree is `root`.
    ///
    /// Returns `None` if the image has none of the programs that show its architecture.
    #[must_use]
    pub fn of_image(root: &Path) -> Option<Self> {
        let root = File::open(root).ok()?;
        let read = |path: &&str| read_in_root(&root, path, BEGINNING).ok();
        PROGRAMS.iter().find_map(read).map(Self)
    }

    /// Returns the bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the name of the architecture in systemd; [`UNKNOWN`] for another architecture, and
    /// `None` for a file that is not in the format ELF.
    #[must_use]
    pub fn architecture(&self) -> Option<&'static str> {
        // elf(5): 4 bytes of magic, the class, the byte order, and at 18 the machine.
        let [0x7f, b'E', b'L', b'F', class, order, ..] = *self.0 else {
            return None;
        };
        let machine = [*self.0.get(18)?, *self.0.get(19)?];
        let is_little = order == 1;
        let machine = if is_little {
            u16::from_le_bytes(machine)
        } else {
            u16::from_be_bytes(machine)
        };
        let is_64 = class == 2;
        // Numbers of elf.h.
        Some(match (machine, is_64, is_little) {
            (3, false, true) => "x86",
            (62, _, true) => "x86-64",
            (40, false, true) => "arm",
            (183, true, true) => "arm64",
            (243, true, true) => "riscv64",
            (22, true, false) => "s390x",
            (21, true, true) => "ppc64-le",
            (258, true, true) => "loongarch64",
            _ => UNKNOWN,
        })
    }

    /// Returns the name of the architecture if it is not one of this host.
    #[must_use]
    pub fn foreign_architecture(&self) -> Option<&'static str> {
        self.architecture()
            .filter(|architecture| !OF_HOST.contains(architecture))
    }
}

/// Parses the name of an architecture that a machine on this host can report.
pub fn parse_personality(name: &str) -> Result<&'static str> {
    let known = OF_HOST.iter().find(|known| **known == name);
    known.copied().with_context(|| {
        format!(
            "{name} is not an architecture of this host; use {}",
            OF_HOST.join(" or ")
        )
    })
}

/// Returns the architecture of the image whose tree is `root`, if this host runs its programs as
/// 32-bit ones.
#[must_use]
pub fn secondary(root: &Path) -> Option<&'static str> {
    let architecture = Beginning::of_image(root)?.architecture()?;
    OF_HOST[1..].contains(&architecture).then_some(architecture)
}

/// Returns whether an interpreter runs the programs of the image whose tree is `root`.
#[must_use]
pub fn is_foreign(root: &Path) -> bool {
    Beginning::of_image(root).is_some_and(|beginning| beginning.foreign_architecture().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beginning(class: u8, order: u8, machine: [u8; 2]) -> Beginning {
        let mut bytes = vec![0x7f, b'E', b'L', b'F', class, order];
        bytes.resize(18, 0);
        bytes.extend(machine);
        Beginning(bytes)
    }

    #[test]
    fn architecture_is_that_of_the_header() {
        for (class, order, machine, expected) in [
            (1, 1, [3, 0], Some("x86")),
            (2, 1, [62, 0], Some("x86-64")),
            (2, 1, [183, 0], Some("arm64")),
            (1, 1, [40, 0], Some("arm")),
            (2, 1, [243, 0], Some("riscv64")),
            (2, 2, [0, 22], Some("s390x")),
            (2, 1, [2, 1], Some("loongarch64")),
            (2, 1, [3, 0], Some(UNKNOWN)),
            (2, 2, [22, 0], Some(UNKNOWN)),
        ] {
            let found = beginning(class, order, machine).architecture();
            assert_eq!(found, expected, "{class} {order} {machine:?}");
        }
        for other in [&b""[..], b"#!/bin/sh\n", b"\x7fELF\x02\x01"] {
            assert_eq!(Beginning(other.to_vec()).architecture(), None);
        }
    }

    #[test]
    fn programs_of_this_host_have_its_architecture() {
        let beginning = Beginning::of_image(Path::new("/")).unwrap();
        assert_eq!(beginning.architecture(), Some(OF_HOST[0]));
        assert_eq!(secondary(Path::new("/")), None);
        assert!(!is_foreign(Path::new("/")));
        assert_eq!(Beginning::of_image(Path::new("/proc")), None);
    }
}
