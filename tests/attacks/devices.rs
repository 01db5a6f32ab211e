//! Devices of the host, and file systems that its kernel would mount.

use std::fs;

use nspawn_tests::{Machine, finish, sh};

use crate::probe::{Place, Probe};
use crate::suite::{self, Control, Fixture, Outside, Suite};

/// Shell function that creates device nodes in each directory that the machine can write to, and tests
/// them with the command `works PATH`.
const CREATE_NODES: &str = r#"
create_nodes() {
    for node in "$@"; do
        for directory in /dev /root /tmp /run /dev/shm /run/nspawn-ci; do
            path=$directory/attack-$$
            attempt mknod "$path" ${node%%:*} $(echo ${node#*:} | tr : ' ') || continue
            works "$path" && result=yes || result=
            rm -f "$path"
            [ -z "$result" ] || got_in "$node in $directory"
        done
    done
}
"#;

/// Creates block device nodes and reads them, and reads all block device nodes that exist.
const READ_BLOCKS: &str = r#"
works() { perl -e 'exit(!(sysopen(F, shift, 2048) && sysread(F, $_, 512)))' "$1"; }
create_nodes "$@"
for path in $(find /dev /run -type b); do
    works "$path" && got_in "$path"
done
kept_out "$why"
"#;

/// Character devices: the kernel's memory, ports and log, loop devices, mappers, virtual machines.
/// The machine may have /dev/net/tun and the usual devices such as /dev/null.
const CHARACTERS: [&str; 9] = [
    "c:1:1", "c:1:4", "c:1:11", "c:10:229", "c:10:231", "c:10:232", "c:10:236", "c:10:237",
    "c:10:238",
];

/// Creates character device nodes, and opens them.
const OPEN_CHARACTERS: &str = r#"
works() { perl -e 'exit(!sysopen(F, shift, 2048))' "$1"; }
create_nodes "$@"
kept_out "$why"
"#;

/// Opens the device nodes that an image contains, below each directory of [`PLANTED`].
///
/// `null` is a device that every machine may have, so only its mount can refuse it.
const OPEN_PLANTED: &str = r#"
root=$1
shift
open() { dd if="$1" count=1 of=/dev/null 2>/dev/null; }
for directory in /opt /root /var /etc; do
    for node in "$@"; do
        path=$root$directory/planted-$node
        [ -e "$path" ] || { echo "$path is missing"; exit 1; }
        open "$path" && got_in "$path"
    done
done
kept_out 'no device node opens'
"#;
/// Directories with device nodes. With `--layer=none`, some of them have file systems of their own.
const PLANTED: [&str; 4] = ["opt", "root", "var", "etc"];

/// Opens a device by every way that root of the host has without its device nodes: by new nodes on
/// new file systems, and by mounting the root without `nodev`.
const OPEN_BY_NUMBER: &str = r#"
open() { dd if="$1" count=1 of=/dev/null 2>/dev/null; }
mount -t tmpfs -o dev none /mnt || exit
attempt mknod /mnt/node b $1 $2 && open /mnt/node && got_in 'by a new node'
mount -o remount,bind,dev / && open /opt/planted-disk && got_in 'by a node of the image'
kept_out "$why"
"#;

/// Machines that run the image with device nodes. Their layers and inits mount roots differently.
const ROOTS: [&[&str]; 9] = [
    &[],
    &["--init=stub"],
    &["--init=none"],
    &["--layer=tmpfs"],
    &["--init=none", "--layer=tmpfs"],
    &["--layer=none"],
    &["--init=stub", "--layer=none"],
    &["--layer-size=infinity"],
    &["--private-users=no", "--layer-size=infinity"],
];

/// Mounts every type of file system. Types that are meant for namespaces are left out, because they
/// show the machine's own data. So are cgroups, which have a row of their own.
const FILE_SYSTEMS: &str = r#"
mkdir -p /tmp/there
for type in $(sed 's/^nodev//' /proc/filesystems); do
    case $type in
    proc | sysfs | tmpfs | ramfs | devpts | mqueue | overlay | cgroup | cpuset | cgroup2 | fuse | bpf | binfmt_misc) continue ;;
    esac
    attempt mount -t "$type" none /tmp/there && got_in "$type"
done
kept_out "$why"
"#;

/// Mounts a file with an ext4 file system.
const IMAGE: &str = r#"
mkdir -p /tmp/there
attempt mount -t ext4 -o loop "$1" /tmp/there && got_in 'by a loop device'
attempt mount -t ext4 "$1" /tmp/there && got_in 'as a file'
attempt unshare --user --map-root-user --mount mount -t ext4 -o loop "$1" /tmp/there && got_in 'in a user namespace'
kept_out "$why"
"#;

pub fn rows(suite: &mut Suite, fixture: &Fixture) {
    let disk = format!("b:{}", disk());
    suite.probe(
        "the host's disk by a new device node",
        Control::Host,
        &Probe::shell(&[CREATE_NODES, READ_BLOCKS].concat(), &[&disk]),
        fixture,
    );
    let loops: Vec<String> = (0..64).map(|number| format!("b:7:{number}")).collect();
    let loops: Vec<&str> = loops.iter().map(String::as_str).collect();
    suite.probe(
        "layers of other machines by new nodes of loop devices",
        Control::Host,
        &Probe::shell(&[CREATE_NODES, READ_BLOCKS].concat(), &loops),
        fixture,
    );
    suite.probe(
        "the kernel's other devices: mem, kmsg, kvm, loop-control, and more",
        Control::Host,
        &Probe::shell(&[CREATE_NODES, OPEN_CHARACTERS].concat(), &CHARACTERS),
        fixture,
    );
    suite.probe(
        "file systems of the kernel: debugfs, tracefs, securityfs, and more",
        Control::Host,
        &Probe::shell(FILE_SYSTEMS, &[]),
        fixture,
    );
    suite.row(
        "layers of other machines by device nodes in an image",
        || planted_nodes_do_not_open(fixture),
    );
    suite.row(
        "layers of other machines, by the host's root in a machine of a disk image",
        || layers_do_not_open_without_a_user_namespace(fixture),
    );
    suite.row(
        "mounting a disk image, which the kernel would parse",
        || disk_images_are_not_mounted(fixture),
    );
}

/// A directory image and a disk image with device nodes: `null`, and the loop device of a layer.
struct PlantedImage {
    name: String,
    device: String,
}

impl PlantedImage {
    fn new(victim: &Machine) -> Self {
        let layer = victim.paths().disk();
        let find = format!(
            "losetup --noheadings --output=MAJ:MIN -j {}",
            layer.display()
        );
        let device = sh(&find).expect(0).out().trim().replace(':', " ");
        let (name, source) = (suite::name(), nspawn_tests::image());
        let this = Self { name, device };
        let plant = PLANTED.map(|directory| {
            let path = format!("{}/{directory}/planted", this.tree());
            format!(
                "mknod -m 666 {path}-null c 1 3; mknod -m 666 {path}-disk b {}; ",
                this.device
            )
        });
        sh(&format!(
            "set -e; cd /var/lib/machines; cp -a $(realpath {source}) {0}; {1} \
             mksquashfs {0} {0}-disk.raw -comp lz4 -quiet -no-progress",
            this.name,
            plant.concat()
        ))
        .expect(0);
        this
    }

    fn tree(&self) -> String {
        format!("/var/lib/machines/{}", self.name)
    }

    fn machine(&self, suffix: &str, options: &[&str]) -> Machine {
        let name = format!("--name={}", suite::name());
        let image = format!("{}{suffix}", self.name);
        Machine::of(&image, &[&[&*name], options].concat())
    }

    /// Checks that no device node of the image opens in the machine.
    fn check(&self, machine: &Machine) {
        Probe::shell(OPEN_PLANTED, &["", "null", "disk"]).is_kept_out(machine);
    }
}

impl Drop for PlantedImage {
    fn drop(&mut self) {
        sh(&format!("rm -rf {0} {0}-disk.raw", self.tree()));
    }
}

fn planted_nodes_do_not_open(fixture: &Fixture) -> Control {
    let image = PlantedImage::new(&fixture.neighbour);
    for node in ["null", "disk"] {
        Probe::shell(OPEN_PLANTED, &[&image.tree(), node]).gets_in(Place::Host);
    }
    for options in ROOTS {
        image.check(&image.machine("", options));
    }
    image.check(&image.machine("-disk", &[]));
    Control::Host
}

fn layers_do_not_open_without_a_user_namespace(fixture: &Fixture) -> Control {
    let image = PlantedImage::new(&fixture.neighbour);
    let (major, minor) = image.device.split_once(' ').unwrap();
    let probe = Probe::shell(OPEN_BY_NUMBER, &[major, minor]);
    probe.gets_in(Place::Host);
    let options = ["--private-users=no", "--layer-size=infinity"];
    let machine = image.machine("-disk", &options);
    probe.is_kept_out(&machine);
    // The probe has no other obstacle than the device.
    let null = Probe::shell(&OPEN_BY_NUMBER.replace("node b", "node c"), &["1", "3"]);
    null.gets_in(Place::Machine(&machine));
    Control::Host
}

fn disk_images_are_not_mounted(fixture: &Fixture) -> Control {
    let outside = Outside::new();
    let image = outside.file("image");
    sh(&format!(
        "truncate --size=8M {image} && mkfs.ext4 -q -F {image}"
    ))
    .expect(0);
    let mut store = fixture.attacker.command(["sh", "-c", "cat >/root/image"]);
    finish(&mut store, &fs::read(&image).unwrap()).expect(0);
    Probe::shell(IMAGE, &[&image]).gets_in(Place::Host);
    Probe::shell(IMAGE, &["/root/image"]).is_kept_out(&fixture.attacker);
    Control::Host
}

/// Returns the number of the host's first disk in /proc/partitions, without RAM disks and loop
/// devices.
fn disk() -> String {
    let table = fs::read_to_string("/proc/partitions").unwrap();
    let fields = table
        .lines()
        .skip(2)
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    let disks = fields.filter(|fields| fields.len() == 4 && !["1", "7"].contains(&fields[0]));
    disks
        .map(|fields| format!("{}:{}", fields[0], fields[1]))
        .next()
        .expect("the host has no disk")
}
