//! The checks of [`Cell`] on btrfs and xfs, which can share blocks between image and layer.
//!
//! All layers of a host are in one directory, which these tests mount over. So they run alone.

mod subvolumes;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::thread;

use nspawn_tests::{call, image, left_of, sh};

use crate::cell::Cell;

/// Number of cells that are checked at a time. They mostly wait.
const AT_ONCE: usize = 4;

/// Prints the number of pages of a file that are in memory (mincore(2)).
const COUNT_PAGES: &str = r#"
import ctypes, mmap, sys
with open(sys.argv[1], "rb") as file:
    memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
address = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(memory)))
pages = (ctypes.c_ubyte * (len(memory) // mmap.PAGESIZE))()
assert ctypes.CDLL(None).mincore(address, ctypes.c_size_t(len(memory)), pages) == 0
print(sum(page & 1 for page in pages))
"#;

/// A file system in a file, with a copy of the host's image and the layers of all machines.
struct FileSystem {
    kind: &'static str,
    image: String,
}

impl FileSystem {
    #[track_caller]
    fn new(kind: &'static str) -> Self {
        let this = Self {
            kind,
            image: format!("e2e-{kind}-{}", std::process::id()),
        };
        let (place, name, base) = (this.place(), &this.image, image());
        let make_image = match kind {
            "btrfs" => format!("btrfs --quiet subvolume create {place}/image"),
            _ => format!("mkdir {place}/image"),
        };
        let force = if kind == "ext4" { "-F" } else { "-f" };
        sh(&format!(
            "set -e; mkdir -p {place} /var/lib/nspawn-ci; truncate --size=6G {place}.img\n\
             mkfs.{kind} -q {force} {place}.img; mount -o loop {place}.img {place}; {make_image}\n\
             cp --archive /var/lib/machines/{base}/. {place}/image; ln -s {place}/image /var/lib/machines/{name}\n\
             mkdir {place}/layers; mount --bind {place}/layers /var/lib/nspawn-ci"
        ))
        .expect(0);
        this
    }

    fn place(&self) -> String {
        format!("/var/tmp/{}", self.image)
    }

    /// Returns all twelve cells.
    fn cells(&self) -> Vec<Cell<'_>> {
        let row = |init| ["disk", "tmpfs", "snapshot", "none"].map(|layer| self.cell(init, layer));
        ["systemd", "stub", "none"]
            .into_iter()
            .flat_map(row)
            .collect()
    }

    fn cell(&self, init: &'static str, layer: &'static str) -> Cell<'_> {
        Cell {
            init,
            layer,
            image: &self.image,
        }
    }

    /// Returns a checksum of the image's metadata, with all times, which show any change of a file.
    fn checksum_of_image(&self) -> String {
        let list = format!(
            "find {}/image -printf '%P %m %U:%G %s %T@ %C@\\n' | sort | sha256sum",
            self.place()
        );
        sh(&list).expect(0).out()
    }
}

impl Drop for FileSystem {
    fn drop(&mut self) {
        let (place, image) = (self.place(), &self.image);
        let _ = call("nspawn-cleanup", ["--all"]);
        let _ = sh(&format!(
            "umount /var/lib/nspawn-ci; rm -f /var/lib/machines/{image}; umount {place}; rm -rf {place}.img; rmdir {place}"
        ));
    }
}

/// Checks all cells, some at a time, and reports those that failed.
///
/// A failed cell does not keep the others from being checked.
fn check_all(system: &FileSystem) {
    let (cells, failed) = (Mutex::new(system.cells()), Mutex::new(Vec::new()));
    let next = || cells.lock().unwrap().pop();
    let work = || {
        while let Some(cell) = next() {
            if catch_unwind(AssertUnwindSafe(|| cell.check())).is_err() {
                failed
                    .lock()
                    .unwrap()
                    .push(format!("{} on {}", cell.init, cell.layer));
            }
        }
    };
    thread::scope(|scope| (0..AT_ONCE).for_each(|_| drop(scope.spawn(work))));
    assert_eq!(
        *failed.lock().unwrap(),
        [] as [String; 0],
        "on {}",
        system.kind
    );
}

fn check_on(kind: &'static str) {
    let system = FileSystem::new(kind);
    let before = system.checksum_of_image();
    check_all(&system);
    assert_eq!(system.checksum_of_image(), before, "the image was changed");
    check_unlimited_layer(&system);
    assert_eq!(
        sh("ls -A /var/lib/nspawn-ci/machines /run/nspawn-ci")
            .expect(0)
            .out()
            .matches(&system.image)
            .count(),
        0
    );
}

// A layer without a size limit is as large as the file system.
fn check_unlimited_layer(system: &FileSystem) {
    for (init, layer) in [("systemd", "disk"), ("none", "disk"), ("stub", "snapshot")] {
        let machine = system.cell(init, layer).machine(&["--layer-size=infinity"]);
        machine
            .sh("head -c 100M /dev/zero >/root/big; ln /root/big /root/second; mkdir -p /root/a/b")
            .expect(0);
        let size = |line: &str| line.trim().parse::<u64>().unwrap();
        let seen = machine
            .sh("df --output=size -k / | tail -n 1")
            .expect(0)
            .out();
        let host = sh("df --output=size -k /var/lib/nspawn-ci | tail -n 1")
            .expect(0)
            .out();
        assert_eq!(size(&seen), size(&host), "{init} on {layer}");
        call("nspawn-cleanup", [&machine.name]).expect(0);
        assert_eq!(left_of(&machine.name), "");
    }
}

/// Checks that a machine whose layer is a snapshot reads its files into pages of its own.
///
/// All other layers share the pages of the image, which is the control.
fn check_pages(kind: &'static str) {
    let system = FileSystem::new(kind);
    let file = format!("{}/image/opt/pages", system.place());
    sh(&format!("head -c 1M /dev/urandom >{file}")).expect(0);
    let pages = || call("python3", ["-c", COUNT_PAGES, &file]).expect(0).out();
    for (layer, is_shared) in [("disk", true), ("snapshot", false)] {
        // An output of no blocks drops the file's pages (dd(1), nocache).
        sh(&format!(
            "sync {file}; dd if=/dev/null of={file} conv=notrunc oflag=nocache count=0"
        ))
        .expect(0);
        assert_eq!(pages().trim(), "0", "{kind}");
        let machine = system.cell("stub", layer).machine(&[]);
        machine.sh("cat /opt/pages >/dev/null").expect(0);
        assert_eq!(pages().trim() != "0", is_shared, "{layer} on {kind}");
    }
}

#[test]
fn snapshot_shares_no_page_with_the_image() {
    for kind in ["btrfs", "xfs"] {
        check_pages(kind);
    }
}

/// Tests snapshots on a host whose /var is mounted nosuid and noexec.
#[test]
fn snapshot_runs_programs_despite_noexec_on_the_host() {
    let system = FileSystem::new("btrfs");
    sh("mount -o remount,bind,nosuid,noexec /var/lib/nspawn-ci").expect(0);
    for init in ["systemd", "stub", "none"] {
        let machine = system.cell(init, "snapshot").machine(&[]);
        machine
            .sh("cp /bin/true /root/program && /root/program")
            .expect(0);
        let root = machine
            .sh("grep ' / ' /proc/mounts | tail -n 1")
            .expect(0)
            .out();
        assert!(
            !root.contains("noexec") && !root.contains("nosuid"),
            "{root}"
        );
    }
}

#[test]
fn every_init_and_layer_works_on_btrfs() {
    check_on("btrfs");
}

#[test]
fn every_init_and_layer_works_on_xfs() {
    check_on("xfs");
}
