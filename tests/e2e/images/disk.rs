//! Disk images of each kind, made of the test host's own image with Debian's tools.

use nspawn_tests::gitlab_runner::{Job, Outcome, Runner};
use nspawn_tests::{call, image, left_of, sh};

use super::Name;

/// Directories that are left out of the disk images, since no boot needs them.
const OMITTED: &str =
    "usr/share/doc usr/share/locale usr/share/man usr/share/info var/lib/apt/lists var/cache/apt";
/// Command that prints the owners and modes of files with various owners.
const STAT_OWNERS: &str =
    "stat -c '%n %u:%g %a' /etc/shadow /usr/bin/passwd /usr/bin/chage /var/mail /";

/// Types of the root and /usr partitions of this architecture.
///
/// They are from the Discoverable Partitions Specification.
#[cfg(target_arch = "x86_64")]
const ROOT_AND_USR_TYPES: [&str; 2] = [
    "4f68bce3-e8cd-4db1-96e7-fbcaf984b709",
    "8484680c-9521-48c6-9c11-b0720656f69e",
];
#[cfg(target_arch = "aarch64")]
const ROOT_AND_USR_TYPES: [&str; 2] = [
    "b921b045-1df0-41c3-af44-4c6f280d3fae",
    "b0e01050-ee5f-4390-949a-9101b17104e9",
];
/// Type of a /home partition.
const HOME_TYPE: &str = "933ac7e1-2eb4-4f13-b844-0e14e2aef915";

/// Makes a disk image by shell lines that run in the image's tree, without the omitted directories.
///
/// The lines write the disk image to `$raw`.
fn make(kind: &str, lines: &str) -> Name {
    let name = Name::new(kind);
    let tree = format!("/var/lib/machines/{}", image());
    // A separate mount namespace allows empty mounts over the omitted directories.
    let hide = "hide() { for dir; do mount -t tmpfs -o mode=0755 none $dir; done; }";
    let script = format!(
        "set -e; cd {tree}; raw={}; {hide}; hide $(ls -d {OMITTED}); {lines}",
        name.path(".raw")
    );
    call("unshare", ["--mount", "sh", "-c", &script]).expect(0);
    name
}

/// Returns shell lines that write a GPT to `$raw`, and fill its partitions.
///
/// A partition has a type, a size in MiB, and a file with its content.
fn gpt(partitions: &[(&str, u32, &str)]) -> String {
    let mut table = "label: gpt\n".to_owned();
    let (mut copies, mut start) = (String::new(), 1);
    for (kind, size, file) in partitions {
        table += &format!("start={start}MiB, size={size}MiB, type={kind}\n");
        copies += &format!(
            "dd if={file} of=$raw bs=1M seek={start} conv=sparse,notrunc status=none; rm {file};"
        );
        start += size;
    }
    format!(
        "truncate --size={}M $raw; echo '{table}' | sfdisk --quiet $raw; {copies}",
        start + 1
    )
}

/// Checks that jobs and machines work with the disk image, and leave it unchanged.
fn check(name: &Name) {
    let sum = || {
        sh(&format!("sha256sum {}", name.path(".raw")))
            .expect(0)
            .out()
    };
    let before = sum();
    for init in ["systemd", "stub", "none"] {
        check_job(name, init);
    }
    check_layer(name);
    check_read_only(name);
    assert_eq!(name.loop_devices(), "");
    assert_eq!(sum(), before);
}

fn check_job(name: &Name, init: &str) {
    let state = if init == "systemd" {
        "systemctl is-system-running --wait"
    } else {
        "echo running"
    };
    let job = Job::new(&name.0)
        .stage(
            "get_sources",
            &[
                "mkdir -p /home/e2e",
                "echo home >/home/e2e/file",
                "echo usr >/usr/e2e-file",
            ],
        )
        .script(&[
            state,
            "cat /home/e2e/file /usr/e2e-file",
            STAT_OWNERS,
            "git --version >/dev/null",
            "exit 7",
        ]);
    let owners = owners(&format!("/var/lib/machines/{}", image()));
    let report = Runner::default()
        .prepare_args(&[&format!("--init={init}")])
        .run(&job);
    let report = report.expect(&Outcome::ScriptFailure(7));
    assert_eq!(
        report.stage("build_script").text(),
        format!("running\nhome\nusr\n{owners}"),
        "{}",
        report.describe()
    );
}

// Returns the owners in the tree of the image.
fn owners(tree: &str) -> String {
    sh(&format!("chroot {tree} sh -c \"{STAT_OWNERS}\"")).out()
}

fn check_layer(name: &Name) {
    let machine = name.machine(&["--init=stub", "--layer-size=infinity"]);
    let layer = format!("/var/lib/nspawn-ci/machines/{}", machine.name);
    machine.sh("echo x >/e2e-new && echo x >/usr/e2e-new && chown 1000:2000 /usr/e2e-new && rm /usr/bin/git").expect(0);
    let found = sh(&format!(
        "cd {layer}; find . -name 'e2e-new' -printf '%f %U:%G\\n' -o -name git -printf '%f %y\\n'"
    ));
    let base: u32 = machine
        .sh("cat /proc/self/uid_map")
        .out()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    assert_ne!(base, 0);
    let mut lines: Vec<_> = found.out().lines().map(str::to_owned).collect();
    lines.sort();
    let new = |uid, gid| format!("e2e-new {}:{}", base + uid, base + gid);
    let mut expected = [new(0, 0), new(1000, 2000), "git c".to_owned()];
    expected.sort();
    assert_eq!(lines, expected, "{}", found.describe());
    // The layer covers /home, which may be a separate partition.
    machine
        .sh("mkdir -p /home/e2e && echo x >/home/e2e/x && mv /usr/e2e-new /home/e2e/ && sync")
        .expect(0);
    let machine_name = machine.name.clone();
    drop(machine);
    assert_eq!(left_of(&machine_name), "");
    name.machine(&["--init=stub"])
        .sh("test ! -e /usr/e2e-new -a ! -e /e2e-new -a ! -e /home/e2e")
        .expect(0);
}

fn check_read_only(name: &Name) {
    let line = "for dir in / /usr /home; do ! touch $dir/e2e 2>/dev/null || echo $dir; done; touch /tmp/e2e /var/e2e";
    let done = call("nspawn-run", ["--image", &name.0, "sh", "-c", line]).expect(0);
    assert_eq!(done.out(), "", "{}", done.describe());
}

#[test]
fn squashfs_image_works() {
    check(&make(
        "squashfs",
        "mksquashfs . $raw -comp lz4 -quiet -no-progress",
    ));
}

#[test]
fn erofs_image_works() {
    check(&make("erofs", "mkfs.erofs -zlz4 $raw . >/dev/null"));
}

#[test]
fn ext4_image_works() {
    check(&make(
        "ext4",
        "truncate --size=500M $raw; mkfs.ext4 -q -d . $raw",
    ));
}

#[test]
fn gpt_image_with_a_root_partition_works() {
    let root = "truncate --size=500M $raw.root; mkfs.ext4 -q -d . $raw.root;";
    check(&make(
        "gpt",
        &format!(
            "{root} {}",
            gpt(&[(ROOT_AND_USR_TYPES[0], 500, "$raw.root")])
        ),
    ));
}

#[test]
fn gpt_image_with_root_usr_and_home_partitions_works() {
    let usr = "truncate --size=400M $raw.usr; mkfs.ext4 -q -d usr $raw.usr;";
    let home = "truncate --size=16M $raw.home; mkfs.ext4 -q $raw.home;";
    let root = "hide usr; truncate --size=100M $raw.root; mkfs.ext4 -q -d . $raw.root;";
    let all = gpt(&[
        (ROOT_AND_USR_TYPES[0], 100, "$raw.root"),
        (ROOT_AND_USR_TYPES[1], 400, "$raw.usr"),
        (HOME_TYPE, 16, "$raw.home"),
    ]);
    check(&make("partitions", &format!("{usr} {home} {root} {all}")));
}
