//! FUSE file systems that a machine provides itself, and the host's programs that share a pipe with
//! a process that waits for one.

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nspawn_common::sys::pidfd::wait_for_exit;
use nspawn_tests::{Machine, call, left_of, sh, wait_until};

use crate::suite::{Control, Fixture, Suite, machine};

/// A file system with one file, whose first page never comes. A child moves the file between its
/// memory and stdin or stdout in one system call, so it holds the lock of the pipe and waits.
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

pub fn rows(suite: &mut Suite, _: &Fixture) {
    if sh("test -c /dev/fuse").code() != 0 {
        return;
    }
    sh(&format!("rm -f {DEVICE} && mknod -m 666 {DEVICE} c 10 229")).expect(0);
    for (name, is_output) in [
        (
            "keeping nspawn-run from its end, by its command's output and FUSE",
            true,
        ),
        (
            "keeping nspawn-run from its end, by its command's input and FUSE",
            false,
        ),
    ] {
        suite.row(name, || {
            let (machine, mut command) = hold_a_pipe(is_output);
            call("kill", [&command.id().to_string()]).expect(0);
            assert!(has_ended(&mut command, 30), "nspawn-run can't be ended");
            call("nspawn-cleanup", [&machine.name]).expect(0);
            assert_eq!(left_of(&machine.name), "");
            Control::Absent
        });
    }
    suite.row(
        "keeping a machine from its removal, by a pipe and FUSE",
        || {
            let (machine, mut command) = hold_a_pipe(true);
            call("kill", ["-KILL", &command.id().to_string()]).expect(0);
            assert!(!has_ended(&mut command, 1), "nothing was held");
            call("timeout", ["30", "nspawn-cleanup", &machine.name]).expect(0);
            assert_eq!(left_of(&machine.name), "");
            assert!(has_ended(&mut command, 5), "nspawn-run can't be ended");
            Control::Absent
        },
    );
    sh(&format!("rm {DEVICE}")).expect(0);
}

/// Starts a command that holds the lock of its pipe, and waits until nspawn-run waits for it.
fn hold_a_pipe(is_output: bool) -> (Machine, Child) {
    let bind = format!("--bind={DEVICE}:/dev/fuse");
    let machine = machine(&["--init=stub", "--property=DeviceAllow=/dev/fuse rwm", &bind]);
    let (number, stream) = if is_output {
        (nix::libc::SYS_write, "1")
    } else {
        (nix::libc::SYS_read, "0")
    };
    let numbers =
        [nix::libc::SYS_mount, nix::libc::SYS_mmap, number].map(|number| number.to_string());
    let mut command = Command::new("nspawn-run");
    command.args(["--stop-timeout=1s", &machine.name, "perl", "-e", SERVER]);
    command.args(&numbers).arg(stream);
    let mut command = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Once the lock is held, nspawn-run needs it for more input, and for more output.
    let (mut input, mut output) = (
        command.stdin.take().unwrap(),
        command.stdout.take().unwrap(),
    );
    fcntl(&output, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let is_held = || {
        let _ = (input.write(b"x"), output.read(&mut [0; 4096]));
        let states = sh(&format!("cat /proc/{}/task/*/stat", command.id())).out();
        states.lines().any(|stat| stat.contains(") D "))
    };
    wait_until(
        "a thread waits for the pipe's lock",
        Duration::from_secs(20),
        is_held,
    );
    std::mem::forget((input, output));
    (machine, command)
}

fn has_ended(command: &mut Child, seconds: u64) -> bool {
    let pid = command.id().try_into().unwrap();
    let has_ended = wait_for_exit(pid, Duration::from_secs(seconds)).unwrap();
    if has_ended {
        let status = command.wait().unwrap();
        assert!(status.code() != Some(0) || status.signal().is_some());
    }
    has_ended
}
