//! FUSE file systems that a machine provides itself, and the host's programs that share a pipe with
//! a process that waits for one.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nspawn_common::sys::pidfd::wait_for_exit;
use nspawn_tests::{Machine, call, left_of, sh, skip};

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
    syswrite STDOUT, "x" x 300000 if $stream == 1;
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
/// Writes and reads a little all the time. The tests never do so themselves: a program at the other
/// side of nspawn-run may wait for the lock, too.
const WRITER: &str = "while printf x; do sleep 0.05; done";
const READER: &str = "while dd bs=4096 count=1 status=none | grep -q .; do sleep 0.05; done";
/// The host's device may be accessible to its root only, who is not the machine's root.
const DEVICE: &str = "/dev/fuse-of-attacks";
/// Attempts to hold nspawn-run, and the time limit for each.
const ATTEMPTS: u32 = 6;
const HOLD_LIMIT: Duration = Duration::from_secs(10);
const CONNECTIONS: &str = "/sys/fs/fuse/connections";

pub fn rows(suite: &mut Suite, _: &Fixture) {
    // Without the connections, a failure would leave processes that nothing ends.
    if sh(&format!("test -c /dev/fuse && mountpoint {CONNECTIONS}")).code() != 0 {
        skip("this kernel has no FUSE");
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
            let held = (0..ATTEMPTS).find_map(|_| Held::try_new(number, stream));
            let held = held.expect("no attempt has held nspawn-run");
            let [run, others @ ..] = &held.processes;
            let name = &held.machine.name;
            call("timeout", ["--signal=KILL", "30", "nspawn-cleanup", name]).expect(0);
            assert_eq!(left_of(name), "");
            assert!(has_ended(run, 5), "nspawn-run can't be ended");
            assert!(others.iter().all(|process| has_ended(process, 5)));
            Control::Absent
        });
    }
    sh(&format!("rm {DEVICE}")).expect(0);
}

/// A command that holds the lock of its pipe, and the nspawn-run that waits for the lock.
struct Held {
    machine: Machine,
    /// nspawn-run, its writer and its reader.
    processes: [Child; 3],
    /// Command that aborts the connections of the machine.
    abort: String,
}

impl Held {
    /// Returns `None` if the command takes the lock at a moment at which nspawn-run does not need it.
    fn try_new(number: nix::libc::c_long, stream: &str) -> Option<Self> {
        let bind = format!("--bind={DEVICE}:/dev/fuse");
        let machine = machine(&["--init=stub", "--property=DeviceAllow=/dev/fuse rwm", &bind]);
        let abort = abort_command(&machine);
        // The processes end even if the suite is killed.
        call(
            "systemd-run",
            [
                "--quiet",
                "--collect",
                "--on-active=90",
                &format!("--unit={}", unit(&machine.name)),
                "sh",
                "-c",
                &abort,
            ],
        )
        .expect(0);
        let numbers = [nix::libc::SYS_mount, nix::libc::SYS_mmap, number];
        let mut writer = start(Command::new("sh").args(["-c", WRITER]), Stdio::null());
        let mut run = Command::new("nspawn-run");
        run.args([&machine.name, "perl", "-e", SERVER])
            .args(numbers.map(|number| number.to_string()))
            .arg(stream);
        let mut run = start(&mut run, writer.stdout.take().unwrap().into());
        let reader = Command::new("sh")
            .args(["-c", READER])
            .stdin(run.stdout.take().unwrap())
            .spawn();
        let held = Self {
            machine,
            processes: [run, writer, reader.unwrap()],
            abort,
        };
        held.waits_for_lock().then_some(held)
    }

    /// Returns whether a thread of nspawn-run waits for the lock, so that nspawn-run survives
    /// SIGKILL.
    fn waits_for_lock(&self) -> bool {
        let run = &self.processes[0];
        let states = format!("cat /proc/{}/task/*/stat", run.id());
        let deadline = Instant::now() + HOLD_LIMIT;
        while !sh(&states).out().contains(") D ") {
            if Instant::now() > deadline {
                return false;
            }
            sleep(Duration::from_millis(50));
        }
        call("kill", ["-KILL", &run.id().to_string()]).expect(0);
        !has_ended(run, 1)
    }
}

impl Drop for Held {
    /// Ends the processes also if the attack has succeeded: nothing else can.
    fn drop(&mut self) {
        sh(&self.abort);
        call(
            "systemctl",
            ["stop", &format!("{}.timer", unit(&self.machine.name))],
        );
        for process in &mut self.processes {
            let _ = process.kill();
            if has_ended(process, 5) {
                let _ = process.wait();
            }
        }
    }
}

fn start(command: &mut Command, stdin: Stdio) -> Child {
    let command = command.stdin(stdin).stdout(Stdio::piped());
    command.spawn().unwrap()
}

fn has_ended(process: &Child, seconds: u64) -> bool {
    let pid = process.id().try_into().unwrap();
    wait_for_exit(pid, Duration::from_secs(seconds)).unwrap()
}

fn unit(machine: &str) -> String {
    format!("abort-fuse-{machine}")
}

fn abort_command(machine: &Machine) -> String {
    let owner = fs::read_to_string(machine.paths().uid_range_file()).unwrap();
    format!(
        "find {CONNECTIONS} -mindepth 1 -maxdepth 1 -uid {owner} -exec sh -c 'echo 1 >\"$0/abort\"' {{}} ';'"
    )
}
