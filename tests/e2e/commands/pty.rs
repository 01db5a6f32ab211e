//! Commands on a pty.

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nspawn_tests::{Machine, call, finish};

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
fn pty_between_pipes_works_as_between_terminals() {
    let machine = Machine::new();
    check_long_output(&machine);
    check_reopened_terminal(&machine);
    check_shell_on_stdin(&machine);
}

/// Checks that no output is lost, and that a background process does not delay the end.
fn check_long_output(machine: &Machine) {
    let script = "seq 100000; sleep 60 & exit 4";
    let mut child = Command::new("nspawn-run")
        .args(["--pty", &machine.name, "sh", "-c", script])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // The output is larger than all buffers on its way.
    thread::sleep(Duration::from_millis(300));
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
}

/// Checks a command that closes its terminal and opens it again.
fn check_reopened_terminal(machine: &Machine) {
    let script = "exec </dev/null >/dev/null 2>&1; sleep 0.2; echo back >/dev/tty; exit 7";
    let done = call("nspawn-run", ["--pty", &machine.name, "sh", "-c", script]).expect(7);
    assert_eq!(done.out(), "back\r\n");
}

fn check_shell_on_stdin(machine: &Machine) {
    let mut shell = Command::new("nspawn-run");
    let done = finish(
        shell.args(["--pty", &machine.name]),
        b"echo $((6*7)); tty\n",
    )
    .expect(0);
    done.expect_out("42\r\n/dev/pts/");
}
