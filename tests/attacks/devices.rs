//! Devices of the host, and file systems that its kernel would mount.

use std::fs;

use nspawn_tests::{finish, sh};

use crate::probe::{Place, Probe};
use crate::suite::{Control, Fixture, Outside, Suite};

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
        "mounting a disk image, which the kernel would parse",
        || disk_images_are_not_mounted(fixture),
    );
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
