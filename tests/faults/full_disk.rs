//! The disk of the layers is full, because the layers together are larger than the disk. A command
//! whose machine has lost a write does not succeed.

use std::thread;

use nspawn_tests::gitlab_runner::{Job, Outcome, Runner};
use nspawn_tests::{Done, Machine, image, sh};

use crate::suite::Suite;

/// Machines that write until the disk is full.
const WRITERS: usize = 4;
/// Size of the file that each of them writes, in MiB. They don't fit on the disk.
const FILE: usize = 150;
/// Size of the disk in MiB.
const DISK: usize = 420;
/// Exit status of nspawn-run for a failure that is not the command's.
const SYSTEM_FAILURE: i32 = 125;

/// A small disk of type ext4 on a directory of the host, which is removed at the end of its try.
struct SmallDisk {
    directory: &'static str,
}

impl SmallDisk {
    const FILE: &'static str = "/var/tmp/full-disk";

    fn mount(directory: &'static str) -> Self {
        let file = Self::FILE;
        sh(&format!(
            "set -e; mkdir -p -m 700 {directory}; rm -f {file}; truncate --size={DISK}M {file}; mkfs.ext4 -q -F {file}\n\
             mount -o loop {file} {directory}"
        ))
        .expect(0);
        Self { directory }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let (file, directory) = (Self::FILE, self.directory);
        // The kernel may still write back the layer of a machine that has just been removed.
        let _ = sh(&format!(
            "for i in $(seq 100); do umount {directory} && break; sleep 0.1; done; rm -f {file}"
        ));
    }
}

/// A file in a machine, with the checksum that the command that wrote it has printed.
struct Written {
    machine: Machine,
    checksum: String,
}

impl Written {
    /// Writes a file of random content in a new machine. Returns `None` if the machine fails.
    fn new(machine: Machine, size: usize, ending: &str) -> Option<Self> {
        let done = machine.sh(&format!(
            "head -c {size}M /dev/urandom >/root/file && {ending} && sha256sum /root/file"
        ));
        let checksum = checksum_of(&done)?;
        Some(Self { machine, checksum })
    }

    /// Reads the file from the disk. It has its checksum, or that is a failure of the system.
    fn check(&self) -> bool {
        // The kernel drops only pages that it has written back, which the first dd begins.
        let drop_pages = "dd if=/root/file of=/dev/null iflag=nocache count=0 status=none";
        let done = self.machine.sh(&format!(
            "{drop_pages}; sleep 1; {drop_pages}; sha256sum /root/file"
        ));
        let checksum = checksum_of(&done);
        assert!(
            checksum
                .as_ref()
                .is_none_or(|found| *found == self.checksum),
            "a command read wrong data and succeeded: {}",
            done.describe()
        );
        checksum.is_some()
    }
}

/// Returns what a command printed that succeeded. The full disk is the only other end.
fn checksum_of(done: &Done) -> Option<String> {
    if done.code() == 0 {
        return Some(done.out());
    }
    assert_eq!(done.code(), SYSTEM_FAILURE, "{}", done.describe());
    done.expect_err("the disk of /var/lib/nspawn-ci/machines was full");
    None
}

pub fn rows(suite: &mut Suite) {
    let tries = suite.times(1, 10);
    for init in ["systemd", "stub", "none"] {
        for ending in ["true", "sync /root/file"] {
            suite.row(
                &format!("four writers fill the disk of the layers: --init={init}, {ending}"),
                tries,
                |_| fill_disk(init, ending),
            );
        }
    }
    suite.row(
        "a job fills the disk of the caches",
        tries,
        fill_disk_of_caches,
    );
}

fn fill_disk(init: &str, ending: &str) {
    let _disk = SmallDisk::mount("/var/lib/nspawn-ci/machines");
    let machine = || Machine::with(&[&format!("--init={init}"), "--layer-size=400M"]);
    let neighbour = Written::new(machine(), 2, ending).expect("the disk has room");
    let writers: Vec<Machine> = (0..WRITERS).map(|_| machine()).collect();
    let written: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = writers
            .into_iter()
            .map(|machine| scope.spawn(move || Written::new(machine, FILE, ending)))
            .collect();
        let results = threads.into_iter().map(|thread| thread.join().unwrap());
        results.collect()
    });
    let intact = written.iter().flatten().filter(|written| written.check());
    assert!(intact.count() < WRITERS, "the files fit on the disk");
    neighbour.check();
}

/// A job whose cache does not fit on the disk is a system failure, and the next one gets an empty
/// cache.
fn fill_disk_of_caches(number: u32) {
    let _disk = SmallDisk::mount("/var/cache/nspawn-ci");
    let runner = || Runner::default().prepare_args(&["--init=stub", "--cache-size=2G"]);
    let project = u64::from(std::process::id()) * 100 + u64::from(number);
    let job = |line: &str| Job::new(&image()).project(project).script(&[line]);
    let good = "head -c 1M /dev/zero >/cache/good";
    runner().run(&job(good)).expect(&Outcome::Success);
    let report = runner().run(&job(&format!(
        "test -e /cache/good && head -c {}M /dev/zero >/cache/bad",
        2 * DISK
    )));
    assert!(
        matches!(report.outcome, Outcome::SystemFailure(_)),
        "{}",
        report.describe()
    );
    report.expect_log("the disk of /var/cache/nspawn-ci was full");
    let empty = "test -z \"$(ls -A /cache)\"";
    runner().run(&job(empty)).expect(&Outcome::Success);
}
