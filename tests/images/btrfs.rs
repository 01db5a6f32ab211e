//! Images on btrfs. Versions are subvolumes there, which share their unchanged data.

use std::path::{Path, PathBuf};

use nspawn_tests::{call, sh, skip};

use crate::lab::{BOOTS, scratch};

/// A btrfs file system in a file, and its mount point.
struct Disk(PathBuf);

impl Disk {
    // Other programs take loop devices too, and mount may lose the race for one.
    fn new() -> Self {
        let (file, mount) = (scratch("btrfs"), scratch("mount"));
        let line = format!(
            "truncate -s 3G {0} && mkfs.btrfs -q {0} && mkdir {1} && \
             for try in 1 2 3 4 5; do mount -o loop {0} {1} && exit; sleep 1; done; exit 1",
            file.display(),
            mount.display()
        );
        sh(&line).expect(0);
        Self(mount)
    }

    fn subvolumes(&self) -> usize {
        sh(&format!("btrfs subvolume list {}", self.0.display()))
            .expect(0)
            .out()
            .lines()
            .count()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = sh(&format!("umount -l {}", self.0.display()));
    }
}

#[test]
fn versions_are_subvolumes() {
    if !sh("grep -w btrfs /proc/filesystems || modprobe btrfs 2>/dev/null && grep -w btrfs /proc/filesystems")
        .status
        .success()
    {
        skip("this kernel has no btrfs");
        return;
    }
    let disk = Disk::new();
    let run = |words: &[&str]| {
        call(
            "nspawn-image",
            words
                .iter()
                .chain(&["--directory", disk.0.to_str().unwrap()]),
        )
    };
    run(&["create", "x", "--from-tar", BOOTS.to_str().unwrap()]).expect(0);
    assert!(!Path::new("/etc/nspawn-ci/images/x.image").exists());
    assert_eq!(disk.subvolumes(), 1);
    run(&["update", "x", "--no-upgrade"]).expect(0);
    run(&["update", "x", "--no-upgrade", "--no-boot-test"]).expect(0);
    assert_eq!(disk.subvolumes(), 2);
    // A subvolume in a version is deleted with the version.
    sh(&format!(
        "btrfs subvolume create {}/x/var/inner",
        disk.0.display()
    ))
    .expect(0);
    run(&["rollback", "x"]).expect(0);
    run(&["prune", "--keep=0"]).expect(0);
    assert_eq!(disk.subvolumes(), 1);
    run(&["remove", "x"]).expect(0);
    assert_eq!(
        (
            disk.subvolumes(),
            sh(&format!("ls -A {}", disk.0.display())).out()
        ),
        (0, String::new())
    );
}
