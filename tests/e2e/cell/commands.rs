//! Checks of commands that `nspawn-run` runs.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use nspawn_tests::{BackgroundCommand, Machine, call, finish, random, wait_until};

use super::{SOON, Sleep};

pub fn check(machine: &Machine) {
    check_exit_statuses(machine);
    check_streams(machine);
    check_arguments(machine);
    check_environment(machine);
    check_user_and_directory(machine);
    check_pty(machine);
    check_script(machine);
    check_cancel(machine);
}

fn check_exit_statuses(machine: &Machine) {
    machine.run(["true"]).expect(0);
    machine.sh("exit 42").expect(42);
    machine
        .run(["no-such-command"])
        .expect_error(127, "can't run \"no-such-command\"");
    for (signal, code) in [("TERM", 143), ("KILL", 137), ("PIPE", 141)] {
        machine.sh(&format!("kill -{signal} $$")).expect(code);
    }
}

fn check_streams(machine: &Machine) {
    let bytes = random(3_000_000, 7);
    let done = finish(&mut machine.command(["tee", "/dev/stderr"]), &bytes).expect(0);
    assert!(done.stdout == bytes, "stdout was changed");
    assert!(done.stderr == bytes, "stderr was changed");
}

fn check_arguments(machine: &Machine) {
    let words = [
        "",
        " ",
        "a b",
        "'\"",
        "$HOME $$",
        "%n %%",
        "\n",
        "\\",
        "-x --help",
        "*;|&`#~",
        "ü",
    ];
    let done = machine
        .run(["printf", r"%s\0"].iter().chain(&words))
        .expect(0);
    assert_eq!(done.out(), words.map(|word| format!("{word}\0")).concat());
}

fn check_environment(machine: &Machine) {
    let script = "echo $FOR_ALL-$OVER-$USER-$HOME-$SHELL; pwd; touch ~/own && git config --global user.name me && \
        git config user.name";
    let done = call(
        "nspawn-run",
        ["-E", "OVER=2", &machine.name, "sh", "-c", script],
    )
    .expect(0);
    assert_eq!(done.out(), "a $b-2-root-/root-/bin/bash\n/root\nme\n");
}

fn check_user_and_directory(machine: &Machine) {
    let options = ["--uid=daemon", "--working-directory=/usr", &*machine.name];
    let done = call(
        "nspawn-run",
        options
            .into_iter()
            .chain(["sh", "-c", "id -un; pwd; touch /tmp/daemons"]),
    )
    .expect(0);
    assert_eq!(done.out(), "daemon\n/usr\n");
}

fn check_pty(machine: &Machine) {
    let done = call(
        "nspawn-run",
        ["--pty", &*machine.name, "sh", "-c", "tty; exit 9"],
    )
    .expect(9);
    assert!(
        done.out().starts_with("/dev/pts/") && done.out().ends_with("\r\n"),
        "{}",
        done.describe()
    );
}

fn check_script(machine: &Machine) {
    let done = finish(
        &mut machine.command::<&str>([]),
        b"x=1\necho \"got $x\"\nexit 5\n",
    )
    .expect(5);
    assert_eq!(done.out(), "got 1\n");
}

/// Cancels a command by SIGTERM, and by killing nspawn-run.
fn check_cancel(machine: &Machine) {
    for (signal, number) in [("TERM", 15), ("KILL", 9)] {
        let (command, started) = (Sleep::new(), Sleep::new());
        let script = format!(
            "setsid {} & echo on; exec {}",
            started.command(),
            command.command()
        );
        // A process that is left would hold nspawn-run's stdout or stderr open.
        let running = BackgroundCommand::start_command(Command::new("nspawn-run").args([
            &*machine.name,
            "bash",
            "-c",
            &script,
        ]));
        wait_until("both processes run", SOON, || {
            command.is_running() && started.is_running()
        });
        running.signal(signal);
        assert_eq!(running.wait().status.signal(), Some(number));
        wait_until("both processes have ended", SOON, || {
            !command.is_running() && !started.is_running()
        });
    }
}
