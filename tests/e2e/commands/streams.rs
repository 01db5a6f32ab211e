//! Streams of a command.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nspawn_tests::{Done, Machine, call, finish, first_line, random, scratch, sh};

use super::LIVING_SLEEP;

#[test]
fn streams_are_passed_through_unchanged() {
    let machine = Machine::new();
    let mut command = machine.command(["sh", "-c", "cat; echo err >&2"]);
    let done = finish(&mut command, b"a b\n\0\xff").expect(0);
    assert_eq!(
        (&*done.stdout, &*done.stderr),
        (&b"a b\n\0\xff"[..], &b"err\n"[..])
    );
    // A command may open its streams again by their names.
    let done = machine
        .sh("echo out >/dev/stdout; echo err >/dev/stderr")
        .expect(0);
    assert_eq!((&*done.out(), &*done.err()), ("out\n", "err\n"));
}

/// Prints the type of stdin, and the number of the device.
const STDIN_TYPE: &str = "stat --dereference --format='%F %t:%T' /proc/self/fd/0";

#[test]
fn null_device_as_stdin_is_the_null_device_of_the_machine() {
    for init in ["--init=systemd", "--init=stub", "--init=none"] {
        let machine = Machine::with(&[init]);
        let type_of = |redirection: &str| {
            let line = format!("nspawn-run {} {STDIN_TYPE} {redirection}", machine.name);
            sh(&line).expect(0).out()
        };
        assert_eq!(
            type_of("</dev/null"),
            "character special file 1:3\n",
            "{init}"
        );
        assert_eq!(type_of("<&-"), "character special file 1:3\n", "{init}");
        assert_eq!(type_of("</etc/passwd"), "fifo 0:0\n", "{init}");
        let owner = machine
            .run(["stat", "--format=%U %a", "/dev/null"])
            .expect(0);
        assert_eq!(owner.out(), "root 666\n", "{init}");
    }
}

#[test]
fn streams_of_a_command_block() {
    let machine = Machine::new();
    for redirection in ["</dev/null", "<&-", "</etc/passwd"] {
        let line = format!(
            "nspawn-run {} sh -c 'sed -n s/^flags:.//p /proc/self/fdinfo/0' {redirection}",
            machine.name
        );
        let flags = sh(&line).expect(0).out();
        let flags = i32::from_str_radix(flags.trim(), 8).unwrap();
        assert_eq!(flags & OFlag::O_NONBLOCK.bits(), 0, "{redirection}");
    }
}

#[test]
fn null_device_of_the_machine_may_be_spoilt() {
    let machine = Machine::new();
    for spoiler in [
        "rm /dev/null; mkfifo /dev/null",
        "rm /dev/null",
        "touch /dev/null",
    ] {
        machine.sh(spoiler).expect(0);
        let line = format!("nspawn-run {} cat </dev/null", machine.name);
        assert_eq!(sh(&line).expect(0).out(), "");
    }
}

#[test]
fn other_users_open_the_streams_by_name() {
    const SCRIPT: &str = "set -e; for user in daemon nobody; do \
        su -s /bin/sh $user -c 'echo out >/dev/stdout; echo err >/dev/stderr; cat /dev/stdin'; done";
    for init in ["--init=systemd", "--init=stub", "--init=none"] {
        let machine = Machine::with(&[init]);
        let done = finish(&mut machine.command(["sh", "-c", SCRIPT]), b"in\n").expect(0);
        assert_eq!(
            (&*done.out(), &*done.err()),
            ("out\nin\nout\n", "err\nerr\n"),
            "{init}"
        );
        machine
            .sh("useradd ann; cp /usr/bin/setpriv /root; chmod 755 /root; chmod 4755 /root/setpriv")
            .expect(0);
        let script = "/root/setpriv --reuid=1 --regid=1 --clear-groups sh -c 'echo out >/dev/stdout; echo err >/dev/stderr'";
        let done = call(
            "nspawn-run",
            ["--uid=ann", &machine.name, "sh", "-c", script],
        )
        .expect(0);
        assert_eq!((&*done.out(), &*done.err()), ("out\n", "err\n"), "{init}");
    }
}

#[test]
fn large_streams_pass_through_pipes_and_files() {
    let machine = Machine::new();
    let bytes = random(20_000_000, 1);
    assert!(
        finish(&mut machine.command(["cat"]), &bytes)
            .expect(0)
            .stdout
            == bytes,
        "bytes were changed"
    );
    // Files are copied in another way than pipes, and files opened for appending in a third way.
    let dir = std::env::temp_dir().join(format!("e2e-{}", std::process::id()));
    fs::write(&dir, &bytes).unwrap();
    let appended = File::options().append(true).open(&dir).unwrap();
    let status = machine
        .command(["cat"])
        .stdin(File::open(&dir).unwrap())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    let status = machine
        .command(["echo", "more"])
        .stdout(appended)
        .status()
        .unwrap();
    assert!(status.success());
    assert!(
        fs::read(&dir).unwrap().strip_prefix(&*bytes) == Some(b"more\n"),
        "the file was changed"
    );
    fs::remove_file(&dir).unwrap();
}

#[test]
fn joined_stdout_and_stderr_stay_in_order() {
    let machine = Machine::new();
    let script = "for i in $(seq 100); do echo $i; echo $i >&2; done";
    let done = sh(&format!(
        "nspawn-run {} sh -c '{script}' 2>&1",
        machine.name
    ))
    .expect(0);
    assert_eq!(
        done.out(),
        (1..=100)
            .map(|number| format!("{number}\n{number}\n"))
            .collect::<String>()
    );
}

#[test]
fn unreadable_stdin_fails_only_commands_that_read_it() {
    let machine = Machine::new();
    let run = |line: &str| sh(&format!("nspawn-run {line}").replace("MACHINE", &machine.name));
    for _ in 0..10 {
        run("MACHINE true </etc").expect(0);
    }
    let read = [
        "MACHINE cat </etc",
        "--uid=nobody MACHINE cat /dev/stdin </",
    ];
    for line in read {
        run(line).expect(1).expect_err("Is a directory");
    }
    let file = scratch("write-only").join("file");
    run(&format!("MACHINE true 0>{}", file.display())).expect(0);
    run(&format!("MACHINE cat 0>{}", file.display())).expect(1);
    // Nothing of a script was run, and a terminal has no input.
    run("MACHINE </etc").expect_error(125, "can't read stdin: EISDIR");
    run("--pty MACHINE true </etc").expect_error(125, "can't read stdin: EISDIR");
    // nohup(1) leaves a stdin that is open for writing only, which matters only if it is read.
    sh(&format!(
        "nspawn-run {} sh -c 'exit 7' 0>/dev/null",
        machine.name
    ))
    .expect(7);
    fs::remove_dir_all(file.parent().unwrap()).unwrap();
}

/// The stack of this process is such a file: behind its last byte, reading fails.
#[test]
fn stdin_that_fails_later_fails_commands_that_come_to_the_failure() {
    const LENGTH: u64 = 40_000;
    let machine = Machine::new();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let stack = maps.lines().find(|line| line.ends_with("[stack]")).unwrap();
    let (range, _) = stack.split_once(' ').unwrap();
    let end = u64::from_str_radix(range.split_once('-').unwrap().1, 16).unwrap();
    let run = |words: &[&str]| {
        let mut memory = File::open("/proc/self/mem").unwrap();
        memory.seek(SeekFrom::Start(end - LENGTH)).unwrap();
        let mut command = machine.command(words);
        Done::new(
            format!("{command:?}"),
            command.stdin(memory).output().unwrap(),
        )
    };
    for _ in 0..10 {
        let all = run(&["wc", "--bytes"]).expect_error(125, "can't read stdin: EIO");
        assert_eq!(all.out(), format!("{LENGTH}\n"));
        assert_eq!(run(&["head", "--bytes=5"]).expect(0).stdout.len(), 5);
        run(&["sh", "-c", "sleep 0.1; exit 3"]).expect(3);
    }
}

#[test]
fn loop_over_a_list_keeps_the_list_with_an_empty_stdin() {
    let machine = Machine::new();
    let count = |input: &str| {
        let line = format!(
            "seq 5 | while read -r n; do nspawn-run {} sh -c \"echo $n; cat >/dev/null\" {input}; done",
            machine.name
        );
        sh(&line).expect(0).out()
    };
    assert_eq!(count("</dev/null"), "1\n2\n3\n4\n5\n");
    assert_eq!(count(""), "1\n");
}

#[test]
fn shell_without_a_command_reads_its_script_from_stdin() {
    let machine = Machine::new();
    let done = finish(
        &mut machine.command::<&str>([]),
        b"x=1\necho \"got $x\"\nexit 5\n",
    )
    .expect(5);
    assert_eq!(done.out(), "got 1\n");
}

#[test]
fn background_process_does_not_delay_the_end_and_goes_on() {
    let machine = Machine::new();
    let started = Instant::now();
    let done = machine
        .sh("sleep 300 & yes | head -c 300000; yes >/tmp/y & echo $!")
        .expect(0);
    assert!(
        started.elapsed() < Duration::from_secs(60),
        "took {:?}",
        started.elapsed()
    );
    assert_eq!(
        done.stdout.len() - 300_000,
        done.out().trim_start_matches("y\n").len()
    );
    // The background process may not have become `sleep` yet.
    machine
        .sh("timeout 20 sh -c 'until pkill -x sleep; do :; done'")
        .expect(0);
    let killing = [
        "--kill-remaining",
        &machine.name,
        "sh",
        "-c",
        "sleep 300 & sleep 300 &",
    ];
    call("nspawn-run", killing).expect(0);
    machine.sh(LIVING_SLEEP).expect(1);
}

#[test]
fn command_ends_by_sigpipe_when_its_reader_closes() {
    let machine = Machine::new();
    let mut child = machine
        .command(["yes"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let line = first_line(child.stdout.take());
    assert_eq!((&*line, child.wait().unwrap().code()), ("y\n", Some(141)));
}
