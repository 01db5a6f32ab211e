//! The environment of scripts: stdin, interpreters, variables, limits, entrypoints, users.

use std::io::Read;
use std::process::Stdio;
use std::time::Duration;

use nspawn_common::sys::pidfd::wait_for_exit;
use nspawn_tests::gitlab_runner::{Job, Outcome, Report, Runner};
use nspawn_tests::{Machine, image, sh};
use serde_json::{Value, json};

fn output_of(lines: &[&str]) -> String {
    Job::new(&image())
        .script(lines)
        .run()
        .expect(&Outcome::Success)
        .stage("build_script")
        .text()
}

#[test]
fn stdin_of_commands_is_empty() {
    let lines = "cat\nread x || echo \"none\"\nssh -V 2>/dev/null || head -c 1\necho the end\n";
    assert_eq!(
        output_of(&lines.lines().collect::<Vec<_>>()),
        "none\nthe end\n"
    );
    // The script that GitLab Runner generates for bash already closes stdin; that of `sh` may not.
    let report = run_file(&format!("#!/bin/sh\n{lines}exit 9\n"));
    let script = report
        .expect(&Outcome::ScriptFailure(9))
        .stage("build_script")
        .text();
    assert_eq!(script, "none\nthe end\n");
}

fn run_file(text: &str) -> Report {
    Job::new(&image()).stage_file("build_script", text).run()
}

#[test]
fn script_can_have_any_interpreter() {
    let report = run_file("#!/usr/bin/perl -w\nprint \"perl $0\\n\" =~ s/ .*//r; exit 6;\n");
    let report = report.expect(&Outcome::ScriptFailure(6));
    assert_eq!(report.stage("build_script").text(), "perl\n");
}

#[test]
fn script_has_a_home_directory() {
    let lines = [
        "git config --global user.name me",
        "git config --get user.name",
        "echo $HOME $USER",
    ];
    assert_eq!(output_of(&lines), "me\n/root root\n");
}

#[test]
fn environment_of_the_runner_does_not_reach_the_script() {
    let job = Job::new(&image())
        .script(&["env | grep -v ^CI_JOB_TOKEN="])
        .variable("OWN", "a $b");
    let report = Runner::default()
        .variable("SECRET_OF_THE_RUNNER", "x")
        .run(&job)
        .expect(&Outcome::Success);
    let environment = report.stage("build_script").text();
    assert!(environment.contains("\nOWN=a $b\n"), "{environment}");
    for name in [
        "SECRET_OF_THE_RUNNER",
        "CUSTOM_ENV_",
        "JOB_RESPONSE_FILE",
        "FAILURE_EXIT_CODE",
        "custom-executor",
    ] {
        assert!(!environment.contains(name), "{name} in {environment}");
    }
}

#[test]
fn long_variables_and_scripts_work() {
    let lines: Vec<String> = (0..4000)
        .map(|line| format!(": {line:050}; n=$((${{n-0}}+1))"))
        .collect();
    let mut lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    assert!(lines.join("\n").len() > 200 << 10);
    lines.push("echo $n ${#LONG} $(printf %s \"$LONG\" | tail -c 3)");
    let job = Job::new(&image())
        .variable("LONG", &("\u{e4}".repeat(50 << 10) + "end"))
        .script(&lines);
    // LC_ALL is not set, so the shell counts bytes.
    let report = job.run().expect(&Outcome::Success);
    let bytes = (100 << 10) + 3;
    assert_eq!(
        report.stage("build_script").text(),
        format!("4000 {bytes} end\n")
    );
}

#[test]
fn long_log_is_complete_and_in_order() {
    let report = Job::new(&image())
        .script(&["seq -w 1 750000"])
        .run()
        .expect(&Outcome::Success);
    let expected: String = (1..=750_000)
        .map(|number| format!("{number:06}\n"))
        .collect();
    assert!(expected.len() > 5 << 20);
    assert!(
        report.stage("build_script").text() == expected,
        "the log was changed"
    );
}

#[test]
fn joined_stdout_and_stderr_stay_in_order() {
    let text = output_of(&[
        "exec 2>&1",
        "for i in $(seq 200); do echo $i; echo $i >&2; done",
    ]);
    assert_eq!(
        text,
        (1..=200)
            .map(|number| format!("{number}\n{number}\n"))
            .collect::<String>()
    );
}

#[test]
fn script_file_is_readable_and_removed_at_the_end() {
    let job = Job::new(&image())
        .script(&["head -n 1 \"$0\"", "ls /run /tmp"])
        .after_script(&["ls /run /tmp"]);
    let report = job.run().expect(&Outcome::Success);
    assert!(
        report
            .stage("build_script")
            .text()
            .starts_with("#!/usr/bin/env bash\n"),
        "{}",
        report.describe()
    );
    let count = report
        .stage("after_script")
        .text()
        .matches("script")
        .count();
    assert!(count <= 1, "{}", report.describe());
}

/// Tests that the unit with the limits contains the job's processes.
#[test]
fn limits_are_on_the_cgroup_that_holds_the_job() {
    let job = Job::new(&image());
    let sleep = format!("sleep 1{}", job.id());
    let job = job
        .script(&[
            "exec 2>/dev/null",
            "echo now",
            &format!("{sleep} || echo killed"),
        ])
        .at_log("now", move |moment| {
            let find = format!(
                "for i in $(seq 100); do pgrep -f '^{sleep}' && exit; sleep 0.05; done; exit 1"
            );
            let pid = sh(&find).expect(0).out().trim_end().to_owned();
            let unit = format!("nspawn-{}.service", moment.machine());
            let cgroup = sh(&format!("cat /proc/{pid}/cgroup")).expect(0).out();
            let of_unit = sh(&format!(
                "systemctl show --property=ControlGroup --value {unit}"
            ))
            .expect(0)
            .out();
            assert!(
                of_unit.trim_end().ends_with(&format!("/{unit}")),
                "{of_unit}"
            );
            assert!(
                cgroup.contains(&format!("{}/", of_unit.trim_end())),
                "{cgroup} is not below {of_unit}"
            );
            let shown = "MemoryMax,TasksMax,MemorySwapMax,RuntimeMaxUSec";
            let limits = sh(&format!("systemctl show --property={shown} {unit}")).out();
            let has = |line: &str| limits.lines().any(|shown| shown == line);
            // RuntimeMaxSec= is the time limit of the job, ten minutes, plus half an hour.
            assert!(
                has("MemorySwapMax=0") && has("RuntimeMaxUSec=40min"),
                "{limits}"
            );
            assert!(
                !has("MemoryMax=infinity") && !has("TasksMax=infinity"),
                "{limits}"
            );
            sh(&format!("kill {pid}")).expect(0);
        });
    let report = job.run().expect(&Outcome::Success);
    assert_eq!(report.stage("build_script").text(), "now\nkilled\n");
}

/// GitLab Runner reads stdout and stderr from two pipes.
#[test]
fn log_keeps_the_order_of_stdout_and_stderr() {
    let line = "for i in $(seq 300); do echo out $i; echo error $i >&2; done; exit 300";
    let report = Job::new(&image())
        .script(&[line])
        .run()
        .expect(&Outcome::ScriptFailure(44));
    let expected: String = (1..=300)
        .map(|number| format!("out {number}\nerror {number}\n"))
        .collect();
    assert_eq!(report.stage("build_script").text(), expected);
}

#[test]
fn log_begins_with_the_machine_and_the_host() {
    let report = Job::new(&image()).run().expect(&Outcome::Success);
    let host = sh("uname -n").out();
    report.expect_log(&format!(
        "Running on {} via {}...",
        report.machine,
        host.trim()
    ));
}

#[test]
fn wishes_without_effect_are_reported_once() {
    let platform = |name: &str| json!({ "docker": { "platform": name } });
    let service = json!({
        "name": format!("{}@sha256:00", image()), "alias": "x", "command": ["sleep", "60"],
        "pull_policy": ["always"], "executor_opts": platform("linux/riscv64"),
    });
    let job = Job::new(&image())
        .image_options(json!({ "executor_opts": platform("linux/riscv64") }))
        .service_of(service)
        .cache("shared", &["x"], "pull");
    let report = Runner::default()
        .prepare_args(&["--init=stub", "--service-timeout=1s"])
        .run(&job)
        .expect(&Outcome::Success);
    for words in [
        "cache: is not shared with protected branches",
        "pull_policy: always has no effect",
        "@sha256:00\" has no effect",
        "docker:platform \"linux/riscv64\" has no effect",
    ] {
        let count = report.log().matches(words).count();
        assert_eq!(count, 1, "{words}: {}", report.describe());
    }
}

#[test]
fn slow_reader_gets_the_complete_log() {
    // The output fits into the pipes on its way, so the command ends before anything is read.
    const BYTES: usize = 300_000;
    let machine = Machine::new();
    let mut command = machine.command(["head", "-c", &BYTES.to_string(), "/dev/zero"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    assert!(
        !wait_for_exit(child.id().try_into().unwrap(), Duration::from_millis(500)).unwrap(),
        "nspawn-run did not wait for its reader"
    );
    let mut log = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut log).unwrap();
    assert_eq!((log.len(), child.wait().unwrap().code()), (BYTES, Some(0)));
}

#[test]
fn entrypoint_of_the_image_runs_the_scripts() {
    let entrypoint =
        json!({ "entrypoint": ["env", "BY=it self", "bash"], "pull_policy": ["always", "never"] });
    let job = Job::new(&image())
        .image_options(entrypoint)
        .stage("get_sources", &["echo \"${BY-nobody}\""]);
    let job = job
        .script(&["echo \"$BY\"", "exit 3"])
        .after_script(&["echo \"after $BY\""]);
    let report = job.run().expect(&Outcome::ScriptFailure(3));
    let texts =
        ["get_sources", "build_script", "after_script"].map(|stage| report.stage(stage).text());
    assert_eq!(
        texts,
        ["nobody\n", "it self\n", "after it self\n"],
        "{}",
        report.describe()
    );
    assert_eq!(
        report
            .log()
            .matches("pull_policy: always has no effect")
            .count(),
        1,
        "{}",
        report.describe()
    );
}

/// An empty word is the usual way to disable an entrypoint.
#[test]
fn empty_entrypoint_is_ignored() {
    let job = Job::new(&image())
        .image_options(json!({ "entrypoint": [""] }))
        .script(&["echo plain"]);
    assert_eq!(
        job.run()
            .expect(&Outcome::Success)
            .stage("build_script")
            .text(),
        "plain\n"
    );
}

#[test]
fn missing_entrypoint_is_a_script_failure() {
    let job = Job::new(&image())
        .image_options(json!({ "entrypoint": ["/no/such"] }))
        .script(&["true"]);
    let _ = job.run().expect(&Outcome::ScriptFailure(127));
}

fn user_option(name: &str) -> Value {
    json!({ "executor_opts": { "docker": { "user": name } } })
}

#[test]
fn scripts_run_as_the_user_of_the_image() {
    let job = Job::new(&image())
        .image_options(user_option("daemon"))
        .script(&["id -un", "touch file", "pwd"]);
    let report = job.run().expect(&Outcome::Success);
    assert_eq!(
        report.stage("build_script").text(),
        "daemon\n/builds/group/project\n",
        "{}",
        report.describe()
    );
}

#[test]
fn unknown_user_of_the_image_is_a_script_failure() {
    let job = Job::new(&image())
        .image_options(user_option("no-such-user"))
        .script(&["true"]);
    let report = job.run().expect(&Outcome::ScriptFailure(1));
    report.expect_log("no-such-user");
}

#[test]
fn image_can_be_named_by_a_variable() {
    let job = Job::new("$DISTRIBUTION")
        .variable("DISTRIBUTION", &image())
        .script(&["echo here"]);
    let _ = job.run().expect(&Outcome::Success);
}
