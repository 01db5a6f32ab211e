//! FUSE file systems that a machine provides itself, and the host's programs that share a pipe with
//! a process that waits for one.

use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nspawn_common::sys::pidfd::wait_for_exit;
use nspawn_tests::{Machine, call, left_of, sh, wait_until};

use crate::suite::{Control, Fixture, Suite, machine};

/// A file system with one file, whose first page never comes. A child moves the file between its
/// memory and stdin or stdout in one system call, so it holds the lock of the pipe and waits. The
/// kernel does not end the connection, since the child has the device open itself.
const SERVER: &str = r#"
use Fcntl;
my ($mount, $mmap, $move, $stream) = @ARGV;
mkdir "/tmp/fuse";
sysopen my $fuse, "/dev/fuse", O_RDWR or die "/dev/fuse: $!";
my ($none, $place, $type, $options) = ("none", "/tmp/fuse", "fuse", "fd=" . fileno($fuse) . ",rootmode=40000,user_id=0,group_id=0");
syscall(0 + $mount, $none, $place, $type, 0, $options) == 0 or die "mount: $!";
if (!fork) {
    sysopen my $file, "/tmp/fuse/x", O_RDWR or die "open: $!";
    my $address = syscall(0 + $mmap, 0, 65536, 3, 1, fileno($file), 0);
    syswrite STDOUT, "x" x 300000;
    syscall(0 + $move, 0 + $stream, $address, 65536);
    exit;
}
sub attributes { my ($inode, $mode) = @_; pack "Q6L10", $inode, 65536, (0) x 7, $mode, 1, (0) x 3, 4096, 0 }
while (sysread $fuse, my $request, 1 << 20) {
    my ($length, $operation, $number, $node) = unpack "LLQQ", $request;
    my %answers = (
        26 => pack("L4S2L2SSL8", 7, 31, 65536, 0, 12, 9, 65536, 1, 1, (0) x 9),
        1 => pack("Q4L2", 2, 0, 3600, 3600, 0, 0) . attributes(2, 0100666),
        3 => pack("QL2", 3600, 0, 0) . attributes($node, $node == 1 ? 040755 : 0100666),
        14 => pack("QL2", 1, 0, 0),
    );
    my $answer = $answers{$operation};
    sleep 1000 if $operation == 15;
    syswrite $fuse, defined $answer ? pack("LlQ", 16 + length $answer, 0, $number) . $answer : pack "LlQ", 16, -38, $number;
}
"#;
/// The host's device may be accessible to its root only, who is not the machine's root.
const DEVICE: &str = "/dev/fuse-of-attacks";
const CONNECTIONS: &str = "/sys/fs/fuse/connections";

pub fn rows(suite: &mut Suite, _: &Fixture) {
    // Without the connections, a failure would leave processes that nothing ends.
    if sh(&format!("test -c /dev/fuse && mountpoint {CONNECTIONS}")).code() != 0 {
        return;
    }
    sh(&format!("rm -f {DEVICE} && mknod -m 666 {DEVICE} c 10 229")).expect(0);
    for (name, number, stream) in [
        (
            "keeping a machine from its removal, by its command's output and FUSE",
            nix::libc::SYS_write,
            "1",
        ),
        (
            "keeping a machine from its removal, by its command's input and FUSE",
            nix::libc::SYS_read,
            "0",
        ),
    ] {
        suite.row(name, || {
            let held = Held::new(number, stream);
            call("kill", ["-KILL", &held.command.id().to_string()]).expect(0);
            assert!(!held.has_ended(1), "nothing was held");
            let name = &held.machine.name;
            call("timeout", ["--signal=KILL", "30", "nspawn-cleanup", name]).expect(0);
            assert_eq!(left_of(name), "");
            assert!(held.has_ended(5), "nspawn-run can't be ended");
            Control::Absent
        });
    }
    sh(&format!("rm {DEVICE}")).expect(0);
}

/// A command that holds the lock of its pipe, and the nspawn-run that waits for the lock.
struct Held {
    machine: Machine,
    command: Child,
    /// Connections of others.
    others: Vec<PathBuf>,
}

impl Held {
    fn new(number: nix::libc::c_long, stream: &str) -> Self {
        let bind = format!("--bind={DEVICE}:/dev/fuse");
        let machine = machine(&["--init=stub", "--property=DeviceAllow=/dev/fuse rwm", &bind]);
        let others = connections();
        let numbers = [nix::libc::SYS_mount, nix::libc::SYS_mmap, number];
        let command = Command::new("nspawn-run")
            .args([&machine.name, "perl", "-e", SERVER])
            .args(numbers.map(|number| number.to_string()))
            .arg(stream)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut held = Self {
            machine,
            command: command.unwrap(),
            others,
        };
        held.wait_for_lock();
        held
    }

    // Once the lock is held, nspawn-run needs it for more input, and for more output.
    fn wait_for_lock(&mut self) {
        let states = format!("cat /proc/{}/task/*/stat", self.command.id());
        let input = self.command.stdin.as_mut().unwrap();
        let output = self.command.stdout.as_mut().unwrap();
        fcntl(&*output, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let limit = Duration::from_secs(20);
        wait_until("a thread waits for the pipe's lock", limit, || {
            let _ = (input.write(b"x"), output.read(&mut [0; 4096]));
            let states = sh(&states).out();
            states.lines().any(|stat| stat.contains(") D "))
        });
    }

    fn has_ended(&self, seconds: u64) -> bool {
        let pid = self.command.id().try_into().unwrap();
        wait_for_exit(pid, Duration::from_secs(seconds)).unwrap()
    }
}

impl Drop for Held {
    /// Ends the processes also if the attack has succeeded: nothing else can.
    fn drop(&mut self) {
        for connection in connections() {
            if !self.others.contains(&connection) {
                let _ = fs::write(connection.join("abort"), "1");
            }
        }
        let _ = self.command.kill();
        if self.has_ended(5) {
            let _ = self.command.wait();
        }
    }
}

fn connections() -> Vec<PathBuf> {
    let entries = fs::read_dir(CONNECTIONS).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}
