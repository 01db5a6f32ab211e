//! The result of a job, which is the result of its script.

use nspawn_tests::gitlab_runner::{Attempt, Job, Outcome, Report, Runner};
use nspawn_tests::{image, sh};

fn result_of(line: &str) -> Report {
    Job::new(&image()).script(&[line, "echo too far"]).run()
}

#[test]
fn exit_codes_of_the_script_are_reported() {
    for code in [1, 2, 42, 81, 82, 125, 126, 127, 128, 255] {
        let report = result_of(&format!("exit {code}")).expect(&Outcome::ScriptFailure(code));
        assert_eq!(
            report.stage("build_script").exit_code_file,
            Some(code.to_string()),
            "{}",
            report.describe()
        );
    }
}

#[test]
fn failing_commands_and_pipes_end_a_script() {
    let _ = result_of("false").expect(&Outcome::ScriptFailure(1));
    let _ = result_of("no-such-command").expect(&Outcome::ScriptFailure(127));
    let _ = result_of("/etc/passwd").expect(&Outcome::ScriptFailure(126));
    let _ = result_of("(exit 7) | cat").expect(&Outcome::ScriptFailure(7));
    let _ = result_of("echo $(exit 7); exit 0").expect(&Outcome::Success);
}

#[test]
fn signals_are_script_failures() {
    // `$$` is the shell of the script, in which GitLab Runner traps TERM.
    for (signal, code) in [
        ("TERM", 1),
        ("HUP", 129),
        ("KILL", 137),
        ("SEGV", 139),
        ("PIPE", 141),
    ] {
        let report = result_of(&format!("ulimit -c 0; kill -{signal} $$; sleep 5"));
        let log = report.expect(&Outcome::ScriptFailure(code)).log();
        assert!(
            signal == "TERM"
                || log.contains(&format!(
                    "nspawn-run: signal {} (SIG{signal}) ended",
                    code - 128
                )),
            "{log}"
        );
    }
    // A shell ends by SIGINT only if the command that it waits for does.
    let _ = result_of("kill -INT $BASHPID; sleep 5").expect(&Outcome::ScriptFailure(130));
    let _ = result_of("sh -c 'kill -INT $$'").expect(&Outcome::ScriptFailure(130));
}

#[test]
fn missing_shell_is_a_script_failure() {
    let job = Job::new(&image()).stage_file("build_script", "#!/usr/bin/env no-such-shell\n");
    let _ = job.run().expect(&Outcome::ScriptFailure(127));
    let job = Job::new(&image()).stage_file("build_script", "#!/no/such/shell\n");
    let _ = job.run().expect(&Outcome::ScriptFailure(127));
}

#[test]
fn failure_before_the_script_prevents_it() {
    let job = Job::new(&image())
        .stage("get_sources", &["exit 3"])
        .script(&["echo too far"])
        .after_script(&["true"]);
    let report = job.run().expect(&Outcome::ScriptFailure(3));
    assert_eq!(
        report.stages()[3..],
        ["get_sources", "cleanup_file_variables", "cleanup"]
    );
}

#[test]
fn failure_of_the_after_script_is_ignored() {
    let job = Job::new(&image())
        .script(&["exit 5"])
        .after_script(&["echo \"$CI_JOB_STATUS\"", "exit 6"]);
    let report = job.run().expect(&Outcome::ScriptFailure(5));
    assert_eq!(report.stage("after_script").text(), "failed\n");
}

#[test]
fn exit_code_is_reset_between_stages() {
    let (runner, job) = (
        Runner::default(),
        Job::new(&image())
            .script(&["true"])
            .stage("next", &["exit 3"]),
    );
    let attempt = Attempt::prepared(&runner, &job);
    attempt.leave_exit_code("42\n");
    let record = attempt.run_stage("build_script").expect();
    assert_eq!(record.exit_code_file, None, "{}", record.describe());
    attempt.leave_exit_code("4242\nand more\n");
    let record = attempt.run_stage("next");
    assert_eq!(
        record.exit_code_file.as_deref().map(str::trim_end),
        Some("3"),
        "{}",
        record.describe()
    );
    attempt.cleanup().expect();
}

/// Tests ways in which root in the machine can end it.
#[test]
fn machine_ended_by_its_job_is_a_system_failure() {
    for (line, cause) in [
        ("systemctl poweroff", "it was shut down"),
        ("systemctl reboot", "it was rebooted"),
        ("systemctl halt", "it was shut down"),
        ("systemctl --force --force poweroff", "it was shut down"),
        ("systemctl exit 0", "it was shut down"),
        ("kill -s RTMIN+14 1", "it was shut down"), // systemd(1): power off at once
        ("pkill -KILL nspawn-run", "its agent ended"),
        (
            "systemctl stop nspawn-agent",
            "it runs, but its agent no longer answers",
        ),
    ] {
        // The script exits with 0 on each signal that could end it.
        let job = Job::new(&image()).stage_file(
            "build_script",
            &format!(
                "#!/bin/bash\ntrap 'exit 0' TERM HUP INT\n{line}\nsleep 60 & wait\necho too far\n"
            ),
        );
        let report = job.run();
        assert!(
            matches!(report.outcome, Outcome::SystemFailure(_)),
            "{line}: {}",
            report.describe()
        );
        assert!(
            report.log().contains(cause),
            "no {cause:?} after {line}: {}",
            report.describe()
        );
        let _ = report.expect_system_failure();
    }
}

/// Tests ways in which an administrator of the host, or the kernel, can end a machine.
#[test]
fn machine_ended_by_the_host_is_a_system_failure() {
    for (line, cause) in [
        // Versions of systemd after 257 end the machine's PID 1 instead of its unit.
        (
            "machinectl terminate NAME",
            "its unit was stopped|it was shut down",
        ),
        ("machinectl poweroff NAME", "it was shut down"),
        (
            "machinectl kill --kill-whom=leader --signal=KILL NAME",
            "its PID 1 ended",
        ),
        (
            "kill -KILL $(machinectl show --property=Leader --value NAME)",
            "its PID 1 ended",
        ),
        ("systemctl stop nspawn-NAME.service", "its unit was stopped"),
        (
            "systemctl kill --signal=KILL nspawn-NAME.service",
            "signal 9 (SIGKILL) ended its systemd-nspawn",
        ),
        (
            "pkill -KILL -f '^systemd-nspawn .*--machine=NAME'",
            "signal 9 (SIGKILL) ended its systemd-nspawn",
        ),
    ] {
        let job = Job::new(&image()).script(&["trap 'exit 0' TERM", "echo now", "sleep 60 & wait"]);
        let job = job.at_log("now", move |moment| {
            sh(&line.replace("NAME", moment.machine())).expect(0);
        });
        let report = job.run();
        assert!(
            matches!(report.outcome, Outcome::SystemFailure(_)),
            "{line}: {}",
            report.describe()
        );
        let log = report.log();
        assert!(
            cause.split('|').any(|cause| log.contains(cause)),
            "no {cause:?} after {line}: {}",
            report.describe()
        );
        let _ = report.expect_system_failure();
    }
}

#[test]
fn dead_machine_fails_the_next_stage() {
    let (runner, job) = (Runner::default(), Job::new(&image()).script(&["true"]));
    let attempt = Attempt::prepared(&runner, &job);
    sh(&format!(
        "systemctl stop nspawn-{}.service",
        attempt.machine()
    ))
    .expect(0);
    attempt
        .run_stage("build_script")
        .expect_system_failure(attempt.machine());
    attempt.cleanup().expect();
}
