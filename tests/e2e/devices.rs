//! `--device=`: devices of the host in machines, for each init, and for users of the machine.

use std::fs;
use std::path::Path;

use nspawn_tests::{Machine, call, image, sh};

/// Mounts a FUSE file system with /dev/fuse, which must be open to this user in a namespace of its own,
/// and unmounts it.
const MOUNT_FUSE: &str = r#"
use Fcntl;
use File::Temp "tempdir";
sysopen my $fuse, "/dev/fuse", O_RDWR or die "/dev/fuse: $!";
my ($none, $place, $type, $options) = ("none", tempdir("/tmp/fuse.XXXXXX"), "fuse", "fd=" . fileno($fuse) . ",rootmode=40000,user_id=0,group_id=0");
syscall(0 + $ARGV[0], $none, $place, $type, 0, $options) == 0 or die "mount: $!";
"#;

/// Opens a node, and prints the number of the error.
const OPEN: &str = "use Fcntl; print sysopen(my $node, $ARGV[0], O_RDWR) ? 0 : 0 + $!";

/// A device node on the host that is removed at the end, unless the host had it before.
struct HostNode(Option<&'static str>);

impl HostNode {
    /// Provides the node, which root alone may open if the host lacks it.
    fn new(path: &'static str, major: u64, minor: u64) -> Self {
        if Path::new(path).exists() {
            return Self(None);
        }
        let directory = Path::new(path).parent().unwrap().display();
        sh(&format!(
            "mkdir -p {directory} && mknod -m 600 {path} c {major} {minor}"
        ))
        .expect(0);
        Self(Some(path))
    }
}

impl Drop for HostNode {
    fn drop(&mut self) {
        if let Some(path) = self.0 {
            let _ = fs::remove_file(path);
        }
    }
}

fn mount_fuse(machine: &Machine, user: &[&str]) {
    let number = nix::libc::SYS_mount.to_string();
    let unshare = ["unshare", "--user", "--map-root-user", "--mount"];
    let words = [user, &unshare, &["perl", "-e", MOUNT_FUSE, &number]].concat();
    machine.run(words).expect(0);
}

#[test]
fn fuse_works_for_every_user() {
    for options in [
        &["--device=fuse"][..],
        &["--device=fuse", "--init=stub"],
        &["--device=fuse", "--init=none"],
        &["--device=fuse", "--layer=none"],
        &[
            "--device=fuse",
            "--private-users=no",
            "--layer-size=infinity",
        ],
        &["--nesting"],
    ] {
        let machine = Machine::with(options);
        mount_fuse(&machine, &[]);
        mount_fuse(&machine, &["setpriv", "--reuid=1000", "--clear-groups"]);
    }
}

#[test]
fn machines_without_the_option_have_no_fuse() {
    let machine = Machine::new();
    machine
        .sh("! perl -e 'exit !open F, \"+<\", \"/dev/fuse\"'")
        .expect(0);
}

#[test]
fn node_belongs_to_the_group_of_the_machine() {
    let _node = HostNode::new("/dev/kvm", 10, 232);
    for init in ["--init=systemd", "--init=none"] {
        let machine = Machine::with(&["--device=kvm", init]);
        // A container's host may lack the driver, but the device policy and the mode allow the node.
        let error = machine
            .run(["perl", "-e", OPEN, "/dev/kvm"])
            .expect(0)
            .out();
        assert!(["0", "6", "19"].contains(&&*error), "{init}: {error}");
        let user = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"];
        let open = ["perl", "-e", OPEN, "/dev/kvm"];
        let done = machine.run([&user[..], &open].concat()).expect(0);
        assert_eq!(done.out(), error, "{init}");
    }
    let machine = Machine::with(&["--init=none", "--device=kvm", "--device=fuse"]);
    machine
        .sh("getent group kvm >/dev/null || echo kvm:x:993: >>/etc/group")
        .expect(0);
    machine
        .sh("test \"$(stat -c %U:%G:%a /dev/kvm /dev/fuse | xargs)\" = 'root:kvm:666 root:root:666'")
        .expect(0);
}

#[test]
fn every_node_of_a_gpu_is_given() {
    let _nodes = [
        HostNode::new("/dev/dri/renderD128", 226, 128),
        HostNode::new("/dev/dri/card0", 226, 0),
    ];
    let machine = Machine::with(&["--device=dri"]);
    machine
        .sh("test -c /dev/dri/renderD128 && test -c /dev/dri/card0")
        .expect(0);
}

#[test]
fn argument_file_of_an_image_gives_a_device() {
    let name = format!("devices-{}", std::process::id());
    let arguments = format!("/etc/nspawn-ci/images/{name}.args");
    sh(&format!(
        "ln -s $(realpath {}) /var/lib/machines/{name} && mkdir -p /etc/nspawn-ci/images && \
         echo --device=fuse >{arguments}",
        format_args!("/var/lib/machines/{}", image())
    ))
    .expect(0);
    let machine = Machine::of(&name, &["--init=stub"]);
    let done = machine.sh("test -c /dev/fuse");
    sh(&format!("rm /var/lib/machines/{name} {arguments}")).expect(0);
    done.expect(0);
}

#[test]
fn character_device_is_given_by_its_path() {
    let path = format!("/dev/fuse-of-tests-{}", std::process::id());
    sh(&format!("mknod -m 600 {path} c 10 229")).expect(0);
    let machine = Machine::with(&["--init=stub", &format!("--device={path}")]);
    let done = machine.run(["perl", "-e", OPEN, &path]);
    sh(&format!("rm {path}")).expect(0);
    assert_eq!(done.expect(0).out(), "0");
}

#[test]
fn missing_and_unsafe_devices_are_refused() {
    for (device, message) in [
        ("loop", "can't give a machine loop devices: the host uses"),
        (
            "/dev/loop0",
            "can't give a machine loop devices: the host uses",
        ),
        ("nvidia", "this host has no /dev/nvidiactl; it needs a GPU"),
        (
            "/dev/missing",
            "can't give the machine the device /dev/missing",
        ),
        ("/dev/shm", "it is no character device"),
        ("gpu", "it needs one of fuse, kvm, tun, dri, kfd, nvidia"),
    ] {
        let option = format!("--device={device}");
        call("nspawn-prepare", [&*option, &image()]).expect_error(1, message);
    }
}
