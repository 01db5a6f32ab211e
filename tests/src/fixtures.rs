//! Packages, data and shell functions that tests use.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use crate::command::sh;

/// Shell function `flags HEX FILE…` that sets inode flags (`ioctl_iflags(2)`).
///
/// The flag 10 is immutable, and 20 is append-only. Small images have Perl, but no chattr.
pub const FLAGS: &str = "flags() { perl -e '$flags = shift; for (@ARGV) { open F, \"<\", $_ or die; \
    ioctl F, 0x40086602, pack(\"L!\", hex $flags) or die \"$_: $!\" }' \"$@\"; }";

/// Installs Debian packages on this host, unless they are installed already.
#[track_caller]
pub fn install(packages: &str) {
    let options =
        "--quiet --yes --no-install-recommends --option Dpkg::Options::=--force-unsafe-io";
    let line = format!(
        "dpkg --status {packages} >/dev/null 2>&1 || \
         {{ apt-get --quiet update && DEBIAN_FRONTEND=noninteractive apt-get install {options} {packages}; }}"
    );
    sh(&line).expect(0);
}

/// Says that a test, or a part of it, does not run here. In CI this fails the test.
#[track_caller]
pub fn skip(reason: &str) {
    let is_ci = std::env::var_os("CI").is_some_and(|value| !value.is_empty());
    assert!(!is_ci, "{reason}");
    // The test harness hides the output of eprintln! for tests that pass.
    let _ = writeln!(std::io::stderr(), "skipped: {reason}");
}

/// Creates a directory for temporary files of the test `name`.
#[track_caller]
pub fn scratch(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("e2e-{name}-{}", std::process::id()));
    fs::create_dir_all(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    path
}

/// Returns `count` pseudo-random bytes, which are the same for the same seed.
pub fn random(count: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; count];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}
