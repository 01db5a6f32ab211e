//! Exit statuses of a command.

use nspawn_tests::{Machine, call};

use super::NO_SLEEP;

#[test]
fn exit_statuses_of_the_command_are_returned() {
    let machine = Machine::new();
    machine.check_exit_statuses(&[0, 1, 2, 42, 124, 125, 126, 127, 128, 255]);
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
