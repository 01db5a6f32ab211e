//! The image of the rows.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::process::Command;

use nspawn_tests::{image, sh};

/// Script that prepares the image: a user `ci`, and no service that starts by itself.
const SETUP: &str = include_str!("setup.sh");

/// Returns the name of an image with these packages, which is created if this host has none.
///
/// Its source is the release's image of the host. The name has a hash of all that it is made of.
#[track_caller]
pub fn ensure(packages: &str) -> String {
    let mut hasher = DefaultHasher::new();
    (SETUP, packages).hash(&mut hasher);
    let name = format!("everyday-{:016x}", hasher.finish());
    if Path::new("/var/lib/machines").join(&name).exists() {
        return name;
    }
    let (tar, setup) = ("/var/tmp/everyday.tar", "/var/tmp/everyday-setup");
    let tree = format!("/var/lib/machines/{}", image());
    let pack =
        format!("rm -rf /var/lib/machines/everyday-*; tar -C {tree} --numeric-owner -cf {tar} .");
    sh(&pack).expect(0);
    fs::write(setup, SETUP).expect("/var/tmp is writable");
    let packages = packages.split_whitespace().collect::<Vec<_>>().join(",");
    let status = Command::new("nspawn-image")
        .args(["create", &name, "--unversioned", "--no-boot-test"])
        .args(["--from-tar", tar, "--include", &packages, "--script", setup])
        .status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "no image {name}"
    );
    sh(&format!("rm {tar} {setup}")).expect(0);
    name
}
