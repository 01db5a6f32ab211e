//! Devices of the host, and file systems that its kernel would read from them.

use std::fs;

use nspawn_tests::{finish, sh};

use crate::probe::{Place, Probe};
use crate::suite::{Control, Field, Outside, Suite};

/// Makes nodes wherever the machine can write, and reads them.
const NODES: &str = r#"
for node in "$@"; do
    for directory in /dev /root /tmp /run /dev/shm /run/nspawn-ci; do
        path=$directory/attack-$$
        attempt mknod "$path" ${node%%:*} $(echo ${node#*:} | tr : ' ') || continue
        perl -e 'exit(!(sysopen(F, shift, 2048) && sysread(F, $_, 512)))' "$path" && bytes=yes || bytes=
        rm -f "$path"
        [ -z "$bytes" ] || got_in "$node in $directory"
    done
done
for path in $(find /dev /run -type b); do
    perl -e 'exit(!(sysopen(F, shift, 2048) && sysread(F, $_, 512)))' "$path" && got_in "$path"
done
kept_out "$why"
"#;

/// A kernel's own log, memory and ports; loops, mappers, virtual machines. The machine may have a tun of its
/// own, and what everybody has.
const CHARACTERS: [&str; 9] = [
    "c:1:1", "c:1:4", "c:1:11", "c:10:229", "c:10:231", "c:10:232", "c:10:236", "c:10:237",
    "c:10:238",
];

const OPEN: &str = r#"
for node in "$@"; do
    for directory in /dev /root /tmp /run; do
        path=$directory/attack-$$
        attempt mknod "$path" ${node%%:*} $(echo ${node#*:} | tr : ' ') || continue
        perl -e 'exit(!sysopen(F, shift, 2048))' "$path" && opens=yes || opens=
        rm -f "$path"
        [ -z "$opens" ] || got_in "$node in $directory"
    done
done
kept_out "$why"
"#;

/// Those that are made for this are left out, since what they show is the machine's own; and cgroups, which
/// have a row of their own.
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

const IMAGE: &str = r#"
mkdir -p /tmp/there
attempt mount -t ext4 -o loop "$1" /tmp/there && got_in 'by a loop device'
attempt mount -t ext4 "$1" /tmp/there && got_in 'as a file'
attempt unshare --user --map-root-user --mount mount -t ext4 -o loop "$1" /tmp/there && got_in 'in a user namespace'
kept_out "$why"
"#;

pub fn rows(suite: &mut Suite, field: &Field) {
    let disk = format!("b:{}", disk());
    suite.probe(
        "the host's disk, by a node of its own making",
        Control::Host,
        &Probe::shell(NODES, &[&disk]),
        field,
    );
    let loops: Vec<String> = (0..64).map(|number| format!("b:7:{number}")).collect();
    let loops: Vec<&str> = loops.iter().map(String::as_str).collect();
    suite.probe(
        "layers of other machines, by nodes of loop devices",
        Control::Host,
        &Probe::shell(NODES, &loops),
        field,
    );
    suite.probe(
        "the kernel's other devices: mem, kmsg, kvm, loop-control, and more",
        Control::Host,
        &Probe::shell(OPEN, &CHARACTERS),
        field,
    );
    suite.probe(
        "file systems of the kernel: debugfs, tracefs, securityfs, and more",
        Control::Host,
        &Probe::shell(FILE_SYSTEMS, &[]),
        field,
    );
    suite.row("a disk's image that the kernel would have to read", || {
        no_image_is_mounted(field)
    });
}

fn no_image_is_mounted(field: &Field) -> Control {
    let outside = Outside::new();
    let image = outside.file("image");
    sh(&format!(
        "truncate --size=8M {image} && mkfs.ext4 -q -F {image}"
    ))
    .expect(0);
    let mut store = field.machine.command(["sh", "-c", "cat >/root/image"]);
    finish(&mut store, &fs::read(&image).unwrap()).expect(0);
    Probe::shell(IMAGE, &[&image]).gets_in(Place::Host);
    Probe::shell(IMAGE, &["/root/image"]).is_kept_out(&field.machine);
    Control::Host
}

// As proc(5) lists them, but for what is made of memory and files.
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
