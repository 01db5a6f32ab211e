//! Commands in a machine: streams, arguments, exit statuses, environment, signals and ptys.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nspawn_common::agent::client;
use nspawn_common::agent::protocol::{Program, Request};
use nspawn_common::machine::name::MachineName;
use nspawn_common::machine::paths::MachinePaths;
use nspawn_common::sys::pidfd::wait_for_exit;
use nspawn_tests::{Machine, call, finish, random, sh};

/// Shell command that succeeds if a process named `sleep` lives.
///
/// A zombie does not count: it only waits for its parent, the machine's PID 1.
const LIVING_SLEEP: &str = "ps -C sleep -o stat= | grep -v '^Z'";
/// Shell command that succeeds once no other process named `sleep` is left.
const NO_SLEEP: &str =
    "for i in $(seq 100); do pgrep -x sleep >/dev/null || exit 0; sleep 0.05; done; exit 1";

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
    std::fs::write(&dir, &bytes).unwrap();
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
        std::fs::read(&dir).unwrap().strip_prefix(&*bytes) == Some(b"more\n"),
        "the file was changed"
    );
    std::fs::remove_file(&dir).unwrap();
}

/// Tests that the command gets the exact bytes of its arguments, for special and random words.
#[test]
fn arguments_reach_the_command_unchanged() {
    let machine = Machine::new();
    let special: [&[u8]; 12] = [
        b"",
        b" ",
        b"a b",
        b"'",
        b"\"",
        b"$HOME $$ ${X}",
        b"%n %%",
        b"\n",
        b"\\",
        b"-x --help",
        b"\xff\xfe\x01",
        b"*;|&`#~",
    ];
    check_arguments(&machine, &special.map(<[u8]>::to_vec));
    let seed = std::env::var("E2E_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or(0x5eed);
    for round in 0..40 {
        let count = 1 + usize::from(random(1, seed + round)[0]) % 8;
        let words: Vec<_> = (0..count)
            .map(|place| random_word(seed + round * 100 + place as u64))
            .collect();
        check_arguments(&machine, &words);
    }
}

fn check_arguments(machine: &Machine, words: &[Vec<u8>]) {
    let printf = ["printf", r"%s\0"].map(OsString::from);
    let done = machine
        .run(
            printf
                .into_iter()
                .chain(words.iter().cloned().map(OsString::from_vec)),
        )
        .expect(0);
    let expected: Vec<u8> = words
        .iter()
        .flat_map(|word| [&word[..], b"\0"].concat())
        .collect();
    assert_eq!(done.stdout, expected, "{}", done.describe());
}

fn random_word(seed: u64) -> Vec<u8> {
    let length = usize::from(random(1, seed)[0]) % 24;
    random(length, seed ^ 0xffff)
        .into_iter()
        .map(|byte| byte.max(1))
        .collect()
}

#[test]
fn argument_of_the_kernels_maximum_length_is_passed() {
    let machine = Machine::new();
    let long = "x".repeat(131_071);
    assert_eq!(machine.run(["printf", "%s", &long]).expect(0).out(), long);
}

#[test]
fn exit_statuses_of_the_command_are_returned() {
    let machine = Machine::new();
    for code in [0, 1, 2, 42, 124, 125, 126, 127, 128, 255] {
        machine.sh(&format!("exit {code}")).expect(code);
    }
    for (signal, number) in [
        ("HUP", 1),
        ("INT", 2),
        ("KILL", 9),
        ("SEGV", 11),
        ("PIPE", 13),
        ("TERM", 15),
    ] {
        machine
            .sh(&format!("ulimit -c 0; kill -{signal} $$"))
            .expect(128 + number);
    }
}

#[test]
fn real_time_signals_are_reported_as_signals() {
    let machine = Machine::new();
    machine.run(["bash", "-c", "kill -34 $$"]).expect(128 + 34);
    // The signal kills the parent process of the command in the agent.
    machine
        .run(["bash", "-c", "kill -34 $PPID; sleep 300 & sleep 300"])
        .expect(125);
    machine.sh(NO_SLEEP).expect(0);
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
fn unreadable_stdin_is_an_error() {
    let machine = Machine::new();
    let done = sh(&format!("nspawn-run {} cat </", machine.name));
    done.expect_error(125, "can't read stdin");
    // nohup(1) leaves a stdin that is open for writing only, which matters only if it is read.
    sh(&format!(
        "nspawn-run {} sh -c 'exit 7' 0>/dev/null",
        machine.name
    ))
    .expect(7);
}

#[test]
fn failure_to_run_has_the_conventional_exit_status() {
    let machine = Machine::new();
    machine.run(["no-such-command"]).expect_error(
        127,
        "can't run \"no-such-command\": No such file or directory",
    );
    machine
        .run(["/no/such/command"])
        .expect_error(127, "can't run \"/no/such/command\"");
    machine
        .run(["/etc/passwd"])
        .expect_error(126, "can't run \"/etc/passwd\": Permission denied");
    machine
        .run(["/etc"])
        .expect_error(126, "can't run \"/etc\"");
    machine.run([""]).expect_error(127, "can't run \"\"");
    call("nspawn-run", ["--uid=nobody-here", &machine.name, "true"])
        .expect_error(125, "no user \"nobody-here\"");
    call(
        "nspawn-run",
        ["--working-directory=/no/such", &machine.name, "true"],
    )
    .expect_error(125, "/no/such");
    call("nspawn-run", ["no-such-machine", "true"]).expect_error(125, "no machine no-such-machine");
    call("nspawn-run", ["--no-such-option"]).expect_error(125, "--no-such-option");
}

#[test]
fn environment_is_that_of_a_login() {
    let machine = Machine::with(&["--setenv=FOR_ALL=a $b", "-E", "OVER=1"]);
    let done = finish(
        Command::new("nspawn-run").args(["-E", "OVER=2", &machine.name, "env"]),
        b"",
    )
    .expect(0);
    let mut lines: Vec<_> = done.out().lines().map(str::to_owned).collect();
    lines.sort_unstable();
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(
        lines,
        [
            "FOR_ALL=a $b",
            "HOME=/root",
            "LOGNAME=root",
            "OVER=2",
            path,
            "SHELL=/bin/bash",
            "USER=root"
        ]
    );
    assert_eq!(machine.run(["pwd"]).expect(0).out(), "/root\n");
    machine
        .run(["git", "config", "--global", "user.name", "x"])
        .expect(0);
}

#[test]
fn uid_option_sets_groups_home_and_directory() {
    let machine = Machine::new();
    machine
        .sh("useradd --create-home --shell /bin/sh --groups games ann")
        .expect(0);
    let done = call(
        "nspawn-run",
        [
            "--uid=ann",
            &machine.name,
            "sh",
            "-c",
            "id -un; id -Gn; echo $HOME; pwd; echo e >/dev/stderr",
        ],
    )
    .expect(0);
    assert_eq!(
        (&*done.out(), &*done.err()),
        ("ann\nann games\n/home/ann\n/home/ann\n", "e\n")
    );
    let done = call(
        "nspawn-run",
        [
            "--uid=12345",
            "--working-directory=/tmp",
            &machine.name,
            "sh",
            "-c",
            "id -u; pwd",
        ],
    )
    .expect(0);
    assert_eq!(done.out(), "12345\n/tmp\n");
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
    machine.run(["pkill", "-x", "sleep"]).expect(0);
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
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!((&*line, child.wait().unwrap().code()), ("y\n", Some(141)));
}

#[test]
fn command_ends_when_nspawn_run_is_killed() {
    let machine = Machine::new();
    // Each round kills nspawn-run at another moment of the command's start.
    for _ in 0..40 {
        let mut command = machine.command(["sh", "-c", "echo on; sleep 300 & sleep 300"]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        child
            .stdout
            .take()
            .unwrap()
            .read_exact(&mut [0; 3])
            .unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }
    machine.sh(NO_SLEEP).expect(0);
}

#[test]
fn command_ends_when_its_client_disconnects_before_the_start() {
    let machine = Machine::new();
    for _ in 0..10 {
        let request = Request {
            program: Program::Command(
                ["sh", "-c", "sleep 300 & sleep 300"]
                    .map(OsString::from)
                    .to_vec(),
            ),
            environment: Vec::new(),
            user: None,
            directory: None,
            terminal: None,
            kill_remaining: false,
        };
        let paths = MachinePaths::new(&MachineName::new(&machine.name).unwrap());
        let mut agent = client::connect(&paths, Duration::from_secs(10)).unwrap();
        let streams = [(); 3].map(|()| OwnedFd::from(File::open("/dev/null").unwrap()));
        client::send_request(&mut agent, &request, streams).unwrap();
    }
    machine.sh(NO_SLEEP).expect(0);
}

/// Starts `script` in the machine and waits until it says `on`.
fn start(options: &[&str], machine: &Machine, script: &str) -> (Child, BufReader<ChildStdout>) {
    let mut command = Command::new("nspawn-run");
    command
        .args(options)
        .args([&*machine.name, "bash", "-c", script]);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "on\n");
    (child, output)
}

#[test]
fn signal_ends_the_command_and_its_descendants() {
    let machine = Machine::new();
    for (signal, number) in [("TERM", 15), ("INT", 2), ("HUP", 1)] {
        let script = "trap 'echo tidied; exit 3' TERM; setsid sleep 300 & (sleep 300 &) ; kill -STOP $(pgrep -n -x sleep); echo on; wait";
        let (mut child, mut output) = start(&[], &machine, script);
        let started = Instant::now();
        sh(&format!("kill -{signal} {}", child.id())).expect(0);
        let mut rest = String::new();
        output.read_to_string(&mut rest).unwrap();
        assert_eq!(
            (&*rest, child.wait().unwrap().signal()),
            ("tidied\n", Some(number))
        );
        assert!(
            started.elapsed() < Duration::from_secs(5),
            "took {:?}",
            started.elapsed()
        );
        machine.sh(LIVING_SLEEP).expect(1);
    }
}

#[test]
fn command_that_ignores_sigterm_is_killed_after_grace_period_or_second_signal() {
    let machine = Machine::new();
    let deaf = "trap '' TERM; sleep 300 & echo on; while :; do wait; done";
    let (mut child, _output) = start(&["--stop-timeout=2s"], &machine, deaf);
    let started = Instant::now();
    sh(&format!("kill -TERM {}", child.id())).expect(0);
    assert_eq!(child.wait().unwrap().signal(), Some(15));
    let took = started.elapsed();
    assert!((2..4).contains(&took.as_secs()), "took {took:?}");
    machine.sh(LIVING_SLEEP).expect(1);
    let (mut child, _output) = start(&["--stop-timeout=60s"], &machine, deaf);
    let started = Instant::now();
    // Signals that are sent together may arrive in either order.
    sh(&format!(
        "kill -TERM {0}; sleep 0.5; kill -INT {0}",
        child.id()
    ))
    .expect(0);
    assert_eq!(child.wait().unwrap().signal(), Some(2));
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "took {:?}",
        started.elapsed()
    );
    machine.sh(NO_SLEEP).expect(0);
}

/// Tests a command that moves to another cgroup, as `su` does if logind makes a session for it.
#[test]
fn command_in_another_cgroup_is_ended() {
    let machine = Machine::new();
    let away = "mkdir -p /sys/fs/cgroup/away && echo $$ >/sys/fs/cgroup/away/cgroup.procs";
    let (mut child, _output) = start(
        &["--stop-timeout=2s"],
        &machine,
        &format!("{away}; sleep 300 & echo on; wait"),
    );
    let started = Instant::now();
    sh(&format!("kill -TERM {}", child.id())).expect(0);
    assert_eq!(child.wait().unwrap().signal(), Some(15));
    assert!(
        started.elapsed() < Duration::from_secs(4),
        "took {:?}",
        started.elapsed()
    );
    machine.sh(LIVING_SLEEP).expect(1);
    let (mut child, _output) = start(
        &[],
        &machine,
        &format!("{away}; setsid sleep 300 & sleep 0.1; echo on; wait"),
    );
    child.kill().unwrap();
    child.wait().unwrap();
    machine.sh(NO_SLEEP).expect(0);
}

#[test]
fn orphans_are_reaped_while_a_command_runs() {
    let machine = Machine::new();
    let script = "(setsid sh -c 'echo $$ >/tmp/orphan; exit 0' &); sleep 0.3; test ! -e /proc/$(cat /tmp/orphan)";
    machine.sh(script).expect(0);
}

#[test]
fn signal_arrives_while_output_is_blocked() {
    let machine = Machine::new();
    let mut command = machine.command(["head", "-c", "300000", "/dev/zero"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    assert!(!wait_for_exit(child.id().try_into().unwrap(), Duration::from_millis(700)).unwrap());
    sh(&format!("kill -TERM {}", child.id())).expect(0);
    assert_eq!(child.wait().unwrap().signal(), Some(15));
}

#[test]
fn ignored_signal_does_not_end_the_command() {
    let machine = Machine::new();
    let line = format!(
        "trap '' HUP; nspawn-run {} sh -c 'sleep 1; exit 7' & sleep 0.5; kill -HUP $!; wait $!",
        machine.name
    );
    sh(&line).expect(7);
}

#[test]
fn interactive_shell_has_a_pty_of_the_callers_size() {
    let machine = Machine::new();
    // script(1) provides the terminal of an interactive user.
    let mut shell = Command::new("script")
        .args([
            "--quiet",
            "--return",
            "--command",
            &format!("stty rows 31 cols 97; exec nspawn-run {}", machine.name),
            "/dev/null",
        ])
        .env("TERM", "vt220")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut keys = shell.stdin.take().unwrap();
    keys.write_all(b"tty; stty size; echo $TERM-$0; hostname\rexit 9\r")
        .unwrap();
    let mut screen = String::new();
    shell
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut screen)
        .unwrap();
    assert_eq!(shell.wait().unwrap().code(), Some(9), "{screen}");
    for shown in ["/dev/pts/", "31 97", "vt220--bash", &machine.name] {
        assert!(screen.contains(shown), "no {shown:?} in {screen:?}");
    }
}

#[test]
fn pty_between_pipes_passes_all_output_and_ends() {
    let machine = Machine::new();
    let mut child = Command::new("nspawn-run")
        .args([
            "--pty",
            &machine.name,
            "sh",
            "-c",
            "seq 100000; sleep 60 & exit 4",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // The output is larger than all buffers on its way.
    std::thread::sleep(Duration::from_millis(300));
    let mut screen = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut screen)
        .unwrap();
    let expected: String = (1..=100_000)
        .map(|number| format!("{number}\r\n"))
        .collect();
    assert!(
        screen == expected,
        "{} bytes of {}",
        screen.len(),
        expected.len()
    );
    assert_eq!(child.wait().unwrap().code(), Some(4));
    // A command may close its terminal and open it again.
    let closing = "exec </dev/null >/dev/null 2>&1; sleep 0.2; echo back >/dev/tty; exit 7";
    let done = call("nspawn-run", ["--pty", &machine.name, "sh", "-c", closing]).expect(7);
    assert_eq!(done.out(), "back\r\n");
    let mut shell = Command::new("nspawn-run");
    let done = finish(
        shell.args(["--pty", &machine.name]),
        b"echo $((6*7)); tty\n",
    )
    .expect(0);
    assert!(
        done.out().contains("42\r\n/dev/pts/"),
        "{}",
        done.describe()
    );
}

#[test]
fn environment_value_of_any_bytes_is_passed() {
    let machine = Machine::new();
    let value = OsStr::from_bytes(b"a\n'\"$x\xff=");
    let done = finish(
        Command::new("nspawn-run").env("ODD", value).args([
            "-E",
            "ODD",
            &machine.name,
            "printenv",
            "ODD",
        ]),
        b"",
    )
    .expect(0);
    assert_eq!(done.stdout, [value.as_bytes(), b"\n"].concat());
}
