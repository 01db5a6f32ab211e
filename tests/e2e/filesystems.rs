//! The checks of [`Cell`] on btrfs and xfs, which can share blocks between image and layer.
//!
//! All layers of a host are in one directory, which these tests mount over. So they run alone.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use nspawn_tests::{Machine, call, image, left_of, sh, wait_until};

use crate::cell::{Cell, Running, Sleep};

/// Number of cells that are checked at a time. They mostly wait.
const AT_ONCE: usize = 4;

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
    std::thread::scope(|scope| (0..AT_ONCE).for_each(|_| drop(scope.spawn(work))));
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

/// Shell functions that create a subvolume and make one read-only.
///
/// Images have no btrfs-progs, so these call the ioctls `BTRFS_IOC_SUBVOL_CREATE` and
/// `BTRFS_IOC_SUBVOL_SETFLAGS` (linux/btrfs.h).
const SUBVOLUMES: &str = "own_ioctl() { perl -e 'my ($place, $number, @values) = @ARGV; my $format = shift @values; \
    my $data = pack $format, @values; open D, \"<\", $place or die \"$place: $!\\n\"; \
    ioctl D, hex $number, $data or die \"@ARGV: $!\\n\"' \"$@\"; }\n\
    subvolume() { own_ioctl \"$1\" 5000940e 'q a4088' 0 \"$2\"; }\n\
    seal() { own_ioctl \"$1\" 4008941a Q 2; }\n";

/// Tests nested and read-only subvolumes, and files with inode flags.
#[test]
fn subvolumes_made_by_a_job_are_removed() {
    let system = FileSystem::new("btrfs");
    let outside = format!("{}/outside", system.place());
    sh(&format!(
        "btrfs --quiet subvolume create {outside} && echo kept >{outside}/file"
    ))
    .expect(0);
    let mut refused = Vec::new();
    // An overlay has no subvolumes. The directory for nested containers is on the layer itself.
    for (init, layer, place) in [
        ("stub", "snapshot", "/root"),
        ("none", "snapshot", "/root"),
        ("stub", "disk", "/var/lib/containers"),
    ] {
        for users in ["pick", "no"] {
            let private_users = format!("--private-users={users}");
            let machine = system.cell(init, layer).machine(&[
                "--layer-size=infinity",
                "--nesting",
                &private_users,
            ]);
            make_subvolumes(&machine, place, users == "no", &outside);
            let done = call("nspawn-cleanup", [&machine.name]);
            if done.code() != 0 || !left_of(&machine.name).is_empty() {
                refused.push(format!(
                    "{init} {layer} {users}: {} {}",
                    done.describe(),
                    left_of(&machine.name)
                ));
            }
        }
    }
    assert_eq!(
        fs::read_to_string(format!("{outside}/file")).unwrap(),
        "kept\n"
    );
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}

fn make_subvolumes(machine: &Machine, place: &str, is_root: bool, outside: &str) {
    let script = format!(
        "set -e; cd {place}; subvolume . plain; subvolume plain nested; subvolume plain/nested deep\n\
         subvolume . sealed; subvolume sealed inner; mkdir sealed/directory; touch sealed/file sealed/inner/file\n\
         subvolume sealed/directory far; seal sealed/directory/far\n\
         ln -s {outside} plain/link; ln -s {outside}/file sealed/link; subvolume . 'of two words'; subvolume . --\n"
    );
    // Only root of the initial user namespace may set these flags.
    let flags = if is_root {
        format!(
            "{}\nmkdir fixed; touch fixed/file plain/file; flags 10 plain/file plain/nested fixed/file fixed sealed/inner\n",
            nspawn_tests::FLAGS
        )
    } else {
        String::new()
    };
    // In a snapshot, the root directory is itself a subvolume.
    let all = if place == "/root" { "seal /" } else { "" };
    machine
        .sh(&format!(
            "{SUBVOLUMES}{script}{flags}seal sealed/inner; seal sealed; {all}"
        ))
        .expect(0);
}

/// Tests that only the machine of the killed `nspawn-run --image` is stale.
#[test]
fn machines_between_runs_are_not_stale() {
    let image = image();
    let waiting: Vec<_> = ["disk", "tmpfs", "none"]
        .map(|layer| {
            Cell {
                init: "none",
                layer,
                image: &image,
            }
            .machine(&[])
        })
        .into();
    for machine in &waiting {
        machine.run(["touch", "/root/kept"]).expect(0);
    }
    let sleep = Sleep::new();
    let script = format!("echo on; {}", sleep.command());
    let running =
        Running::of(Command::new("nspawn-run").args(["--image", &image, "sh", "-c", &script]));
    wait_until("the command sleeps", Duration::from_secs(5), || {
        sleep.is_there()
    });
    let name = sleep.machine();
    call("nspawn-cleanup", ["--stale"]).expect(0);
    assert!(
        sleep.is_there(),
        "the machine of a running command was removed"
    );
    running.signal("KILL");
    drop(running.end());
    call("nspawn-cleanup", ["--stale"]).expect(0);
    assert_eq!(left_of(&name), "");
    for (machine, layer) in waiting.iter().zip(["disk", "tmpfs", "none"]) {
        machine
            .run(["test", "-e", "/root/kept"])
            .expect(i32::from(layer == "none"));
    }
}

/// Device nodes of the host that are moved away, and moved back on drop.
struct Hidden;

impl Hidden {
    fn new(which: &str) -> Self {
        sh(&format!(
            "mkdir /dev/e2e-hidden && mv {which} /dev/e2e-hidden/"
        ))
        .expect(0);
        Self
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        let _ = sh("mv /dev/e2e-hidden/* /dev/; rmdir /dev/e2e-hidden");
    }
}

/// The loop devices of a kernel are shared by all test hosts, so this test must not use them up.
#[test]
fn missing_loop_devices_are_reported() {
    let name = format!("no-loop-{}", std::process::id());
    let image = image();
    for (which, words) in [
        (
            "/dev/loop-control",
            "this host has no loop devices; see --layer-size=infinity",
        ),
        ("/dev/loop[0-9]*", "did not start"),
    ] {
        let hidden = Hidden::new(which);
        let [systemd, stub] = ["systemd", "stub"].map(|init| {
            Cell {
                init,
                layer: "disk",
                image: &image,
            }
            .prepare(&["--name", &name, "--layer-size=64M"])
        });
        // With --init=none the layer is mounted only during runs.
        let cell = Cell {
            init: "none",
            layer: "disk",
            image: &image,
        };
        let none = cell.prepare(&["--name", &name, "--layer-size=64M"]);
        let run = call("nspawn-run", [&*name, "true"]);
        let machine = Cell {
            init: "stub",
            layer: "tmpfs",
            image: &image,
        }
        .machine(&["--network=none"]);
        drop(hidden);
        for done in [systemd, stub] {
            let error = done.expect_error(1, words).err();
            assert!(error.contains("loop"), "{error}");
        }
        if none.code() == 0 {
            let error = run.expect_error(125, words).err();
            assert!(error.contains("--layer-size"), "{error}");
        } else {
            none.expect_error(1, words);
        }
        call("nspawn-cleanup", [&name]).expect(0);
        assert_eq!(left_of(&name), "");
        machine.run(["true"]).expect(0);
    }
}
