//! The disk of the layers is full, because the layers together are larger than the disk. A command
//! whose machine has lost a write does not succeed.

use std::cell::RefCell;
use std::fmt::{self, Display, Formatter};
use std::thread;

use nspawn_tests::gitlab_runner::{Job, Outcome, Runner};
use nspawn_tests::{Done, Machine, image, sh};

use crate::suite::{Suite, name};

/// Size of the file that each writer writes, in MiB.
const FILE: usize = 24;
/// Size of the layers, in MiB.
const LAYER: usize = 40;
/// Free space of the disk for each writer, in MiB. So the files don't fit on the disk.
const SHARE: usize = 16;
/// Exit status of nspawn-run for a failure that is not the command's.
const SYSTEM_FAILURE: i32 = 125;

/// A disk on a directory of the host, which is removed at the end of its try.
struct Disk {
    directory: &'static str,
}

impl Disk {
    const FILE: &'static str = "/var/tmp/full-disk";
    /// Image on a disk for snapshots.
    const IMAGE: &'static str = "full-disk";

    fn mount(directory: &'static str, kind: &str) -> Self {
        let file = Self::FILE;
        // The larger sizes have room for an image.
        let mkfs = match kind {
            "ext4" => "truncate --size=256M $file; mkfs.ext4 -q -m 0",
            "xfs" => "truncate --size=1G $file; mkfs.xfs -q",
            _ => "truncate --size=1G $file; mkfs.btrfs -q",
        };
        sh(&format!(
            "set -e; file={file}; mkdir -p -m 700 {directory}; rm -f $file; {mkfs} $file\n\
             mount -o loop $file {directory}; chmod 700 {directory}"
        ))
        .expect(0);
        Self { directory }
    }

    /// Copies the host's image to the disk, and returns the name of the copy.
    fn copy_image(&self) -> &'static str {
        let (directory, copy, image) = (self.directory, Self::IMAGE, image());
        sh(&format!(
            "cp --archive /var/lib/machines/{image} {directory}/image && ln -sfn {directory}/image /var/lib/machines/{copy}"
        ))
        .expect(0);
        copy
    }

    /// Uses the space of the disk, except for `free` MiB.
    fn fill(&self, free: usize) {
        let directory = self.directory;
        sh(&format!(
            "set -e; sync --file-system {directory}\n\
             free=$(df --output=avail --block-size=1M {directory} | tail -n 1)\n\
             fallocate --length=$((free - {free}))M {directory}/filler; sync --file-system {directory}"
        ))
        .expect(0);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let (file, directory, image) = (Self::FILE, self.directory, Self::IMAGE);
        // The kernel may still write back the layer of a machine that has just been removed.
        let _ = sh(&format!(
            "for i in $(seq 100); do umount {directory} && break; sleep 0.1; done\n\
             rm -f {file} /var/lib/machines/{image}"
        ));
    }
}

/// A kind of machines, with a disk of the host.
#[derive(Clone, Copy)]
struct Kind {
    disk: &'static str,
    layer: &'static str,
    init: &'static str,
    /// Command between the write and its checksum.
    ending: &'static str,
}

impl Display for Kind {
    fn fmt(&self, output: &mut Formatter) -> fmt::Result {
        let Self {
            disk,
            layer,
            init,
            ending,
        } = self;
        write!(
            output,
            "writers fill the disk: {layer} on {disk}, {init}, {ending}"
        )
    }
}

impl Kind {
    fn machine(self, image: &str) -> Machine {
        let (size, init) = (
            format!("--layer-size={LAYER}M"),
            format!("--init={}", self.init),
        );
        let layer: &[&str] = match self.layer {
            "disk" => &["--layer=disk", &size],
            "directory" => &["--layer=disk", "--layer-size=infinity"],
            "tmpfs" => &["--layer=tmpfs", &size],
            "snapshot" => &["--layer=snapshot"],
            _ => &["--layer=none", &size],
        };
        Machine::of(image, &[&["--name", &name(), &init], layer].concat())
    }

    /// Returns whether the machines lose writes on a full disk. The others reserve space for a
    /// write before they accept it.
    fn loses_writes(self) -> bool {
        self.layer == "disk"
    }

    fn is_in_memory(self) -> bool {
        ["tmpfs", "none"].contains(&self.layer)
    }

    /// Returns whether a command sees the files of earlier commands.
    fn keeps_files(self) -> bool {
        self.layer != "none" || self.init != "none"
    }
}

/// Result of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Result {
    Success,
    NoSpace,
    SystemFailure,
}

impl Result {
    /// Reads the result and the output of a command. Fails if the command ended in another way.
    fn of(done: &Done) -> (Self, String) {
        let result = match done.code() {
            0 => Self::Success,
            // A machine without an init starts again for each command, and may have no space.
            SYSTEM_FAILURE if !done.err().contains("No space left on device") => {
                done.expect_err("the disk of /var/lib/nspawn-ci/machines was full");
                Self::SystemFailure
            }
            _ => {
                done.expect_err("No space left on device");
                Self::NoSpace
            }
        };
        (result, done.out())
    }
}

/// A machine with a file, and the results of the commands that wrote it and read it again.
struct Written {
    machine: Machine,
    checksum: String,
    results: Vec<Result>,
}

impl Written {
    /// Writes a file of random content.
    fn new(kind: Kind, machine: Machine, size: usize) -> Self {
        let ending = kind.ending;
        let (result, checksum) = Result::of(&machine.sh(&format!(
            "head -c {size}M /dev/urandom >/root/file && {ending} && sha256sum /root/file"
        )));
        Self {
            machine,
            checksum,
            results: vec![result],
        }
    }

    /// Reads the file from the disk, if the command that wrote it succeeded. It has its checksum,
    /// or the command fails.
    fn check(&mut self, kind: Kind) {
        if self.results != [Result::Success] || !kind.keeps_files() {
            return;
        }
        // The kernel drops only pages that it has written back, which the first dd begins.
        let drop_pages = "dd if=/root/file of=/dev/null iflag=nocache count=0 status=none";
        let done = self.machine.sh(&format!(
            "{drop_pages}; sleep 0.5; {drop_pages}; sha256sum /root/file"
        ));
        let (result, checksum) = Result::of(&done);
        assert!(
            result != Result::Success || checksum == self.checksum,
            "a command read wrong data and succeeded: {}",
            done.describe()
        );
        self.results.push(result);
    }

    fn has_only(&self, result: Result) -> bool {
        self.results.iter().all(|found| *found == result)
    }
}

/// Results of all tries of a row.
#[derive(Default)]
struct Summary {
    writers: Counts,
    neighbours: Counts,
}

/// Numbers of machines with certain results.
#[derive(Default)]
struct Counts {
    intact: usize,
    no_space: usize,
    failed_to_write: usize,
    failed_to_read: usize,
}

impl Counts {
    fn add(&mut self, written: &Written) {
        *match written.results[..] {
            [.., Result::NoSpace] => &mut self.no_space,
            [Result::SystemFailure] => &mut self.failed_to_write,
            [_, Result::SystemFailure] => &mut self.failed_to_read,
            _ => &mut self.intact,
        } += 1;
    }
}

impl Display for Counts {
    fn fmt(&self, output: &mut Formatter) -> fmt::Result {
        write!(
            output,
            "{} intact, {} without space, system failures: {} at the write, {} after it",
            self.intact, self.no_space, self.failed_to_write, self.failed_to_read
        )
    }
}

pub fn rows(suite: &mut Suite) {
    for kind in kinds(suite.is_long) {
        let summary = RefCell::default();
        let writers = if suite.is_long { 4 } else { 2 };
        suite.row_with_note(&kind.to_string(), suite.times(1, 10), |_| {
            fill_disk(kind, writers, &mut summary.borrow_mut());
            let Summary {
                writers,
                neighbours,
            } = &*summary.borrow();
            Some(format!("writers: {writers}\n  neighbours: {neighbours}"))
        });
    }
    suite.row(
        "a job fills the disk of the caches",
        suite.times(1, 10),
        fill_disk_of_caches,
    );
}

fn kinds(is_long: bool) -> Vec<Kind> {
    let places: &[_] = if is_long {
        &[
            ("disk", "ext4"),
            ("disk", "xfs"),
            ("disk", "btrfs"),
            ("directory", "ext4"),
            ("tmpfs", "ext4"),
            ("snapshot", "xfs"),
            ("snapshot", "btrfs"),
            ("none", "ext4"),
        ]
    } else {
        &[("disk", "ext4")]
    };
    let endings: &[_] = if is_long {
        &["true", "sync /root/file"]
    } else {
        &["true"]
    };
    let mut kinds = Vec::new();
    for (layer, disk) in places {
        for init in ["systemd", "stub", "none"] {
            kinds.extend(endings.iter().map(|ending| Kind {
                disk,
                layer,
                init,
                ending,
            }));
        }
    }
    kinds
}

/// Lets machines write files that are together larger than the disk, which one of them has used
/// before.
fn fill_disk(kind: Kind, writers: usize, summary: &mut Summary) {
    let disk = Disk::mount("/var/lib/nspawn-ci", kind.disk);
    let image = match kind.layer {
        "snapshot" => disk.copy_image().to_owned(),
        _ => image(),
    };
    let mut neighbour = Written::new(kind, kind.machine(&image), 2);
    let machines = in_parallel(0..writers, |_| kind.machine(&image));
    disk.fill(if kind.is_in_memory() {
        1
    } else {
        writers * SHARE
    });
    let mut written = in_parallel(machines, |machine| Written::new(kind, machine, FILE));
    in_parallel(&mut written, |written| written.check(kind));
    neighbour.check(kind);
    written
        .iter()
        .for_each(|written| summary.writers.add(written));
    summary.neighbours.add(&neighbour);
    let intact = |written: &Written| written.has_only(Result::Success);
    assert_eq!(
        written.iter().all(intact),
        kind.is_in_memory(),
        "not all files fit on the disk"
    );
    assert_eq!(
        neighbour.results.contains(&Result::SystemFailure),
        kind.loses_writes(),
        "the neighbour existed when the disk was full"
    );
}

fn in_parallel<Item: Send, Value: Send>(
    items: impl IntoIterator<Item = Item>,
    work: impl Fn(Item) -> Value + Sync,
) -> Vec<Value> {
    let work = &work;
    thread::scope(|scope| {
        let threads: Vec<_> = items
            .into_iter()
            .map(|item| scope.spawn(move || work(item)))
            .collect();
        let results = threads.into_iter().map(|thread| thread.join().unwrap());
        results.collect()
    })
}

/// A job whose cache does not fit on the disk is a system failure, and the next one gets an empty
/// cache.
fn fill_disk_of_caches(number: u32) {
    let _disk = Disk::mount("/var/cache/nspawn-ci", "ext4");
    let runner = || Runner::default().prepare_args(&["--init=stub", "--cache-size=2G"]);
    let project = u64::from(std::process::id()) * 100 + u64::from(number);
    let job = |line: &str| Job::new(&image()).project(project).script(&[line]);
    let good = "head -c 1M /dev/zero >/cache/good";
    runner().run(&job(good)).expect(&Outcome::Success);
    let report = runner().run(&job(
        "test -e /cache/good && head -c 512M /dev/zero >/cache/bad",
    ));
    assert!(
        matches!(report.outcome, Outcome::SystemFailure(_)),
        "{}",
        report.describe()
    );
    report.expect_log("the disk of /var/cache/nspawn-ci was full");
    let empty = "test -z \"$(ls -A /cache)\"";
    runner().run(&job(empty)).expect(&Outcome::Success);
}
