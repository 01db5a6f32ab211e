//! Tests of the stand-in itself, with drivers that are shell scripts.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use tempfile::TempDir;

use super::{Failure, Interruption, Job, Outcome, Reaction, Report, Runner};

/// Drivers in a directory for PATH.
struct Drivers {
    directory: TempDir,
}

impl Drivers {
    fn new(prepare: &str, run: &str, cleanup: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for (program, text) in [
            ("nspawn-prepare", prepare),
            ("nspawn-run", run),
            ("nspawn-cleanup", cleanup),
        ] {
            let path = directory.path().join(program);
            fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        Self { directory }
    }

    fn run(&self, job: &Job) -> Report {
        self.runner().run(job)
    }

    fn runner(&self) -> Runner {
        let path = format!(
            "{}:{}",
            self.directory.path().display(),
            std::env::var("PATH").unwrap()
        );
        Runner::default().variable("PATH", &path)
    }
}

const PREPARE: &str = r#"test "$1" != --config || echo '{"builds_dir":"/tmp/sequencer-builds"}'"#;

#[test]
fn stages_are_called_in_order() {
    let drivers = Drivers::new(
        PREPARE,
        r#"echo "$2 $CUSTOM_ENV_CI_BUILDS_DIR" && test "$(stat -c %a .)" = 700"#,
        "",
    );
    let job = Job::new("a")
        .stage("step_new", &["x"])
        .stage("archive_cache", &["x"])
        .after_script(&["x"])
        .script(&["x"]);
    let report = drivers.run(&job);
    let steps = [
        "prepare_script",
        "get_sources",
        "build_script",
        "step_new",
        "after_script",
        "archive_cache",
    ];
    let stages = [
        &["config", "prepare"][..],
        &steps,
        &["cleanup_file_variables", "cleanup"],
    ]
    .concat();
    assert_eq!(report.stages(), stages, "{}", report.describe());
    assert_eq!(
        report.stage("build_script").text(),
        "build_script /tmp/sequencer-builds\n"
    );
    assert_eq!(report.outcome, Outcome::Success);
}

#[test]
fn exit_statuses_are_judged_as_gitlab_runner_does() {
    let judge = |code, file| Runner::default().judge(code, file);
    assert_eq!(judge(Some(0), Some("7")), Ok(()));
    assert_eq!(judge(Some(81), None), Err(Failure::Script(1)));
    assert_eq!(judge(Some(81), Some("42\nmore")), Err(Failure::Script(42)));
    for (code, file) in [
        (Some(81), Some(" 42")),
        (Some(82), Some("42")),
        (Some(1), None),
        (Some(2), None),
        (None, None),
    ] {
        assert!(
            matches!(judge(code, file), Err(Failure::System(_))),
            "{code:?} {file:?}"
        );
    }
}

#[test]
fn system_failure_of_prepare_is_retried_after_cleanup_and_build_failure_is_not() {
    let round = ["config", "prepare", "cleanup"];
    let drivers = Drivers::new(
        &format!("{PREPARE}; test \"$1\" = --config || exit $SYSTEM_FAILURE_EXIT_CODE"),
        "",
        "",
    );
    assert_eq!(
        drivers.run(&Job::new("a")).stages(),
        [round, round, round].concat()
    );
    let drivers = Drivers::new(
        &format!("{PREPARE}; test \"$1\" = --config || exit $BUILD_FAILURE_EXIT_CODE"),
        "",
        "",
    );
    let report = drivers.run(&Job::new("a"));
    assert_eq!(
        (report.stages(), &report.outcome),
        (round.to_vec(), &Outcome::ScriptFailure(1))
    );
    let drivers = Drivers::new("echo '{'", "", "");
    assert_eq!(
        drivers.run(&Job::new("a")).stages(),
        [["config", "cleanup"]; 3].concat()
    );
}

#[test]
fn failed_cleanup_is_a_warning() {
    let report = Drivers::new(PREPARE, "", "exit 82").run(&Job::new("a"));
    assert_eq!(
        (report.outcome, report.warnings.len()),
        (Outcome::Success, 1)
    );
}

#[test]
fn after_script_runs_after_cancel_but_not_after_abort_or_timeout() {
    let run = r#"echo "at $2"; test "$2" != build_script || sleep 60"#;
    let drivers = Drivers::new(PREPARE, run, "");
    let job = || Job::new("a").script(&["x"]).after_script(&["x"]);
    for (job, outcome, has_after_script) in [
        (
            job().interrupt_at("at build", Reaction::Canceling),
            Outcome::Canceled,
            true,
        ),
        (
            job().interrupt_at("at build", Reaction::Abort),
            Outcome::Canceled,
            false,
        ),
        (
            job().timeout(Duration::from_secs(1)),
            Outcome::TimedOut,
            false,
        ),
    ] {
        let report = drivers.run(&job);
        assert_eq!(report.outcome, outcome, "{}", report.describe());
        assert_eq!(
            report.stages().contains(&"after_script"),
            has_after_script,
            "{}",
            report.describe()
        );
        assert_eq!(report.stages().last(), Some(&"cleanup"));
    }
}

#[test]
fn driver_that_ignores_sigterm_is_killed_with_its_group() {
    let run = r#"test "$2" = build_script || exit 0; trap '' TERM; echo on; sleep 60; sleep 60"#;
    let drivers = Drivers::new(PREPARE, run, "");
    let runner = drivers
        .runner()
        .graceful_kill_timeout(Duration::from_millis(200));
    let report = runner.run(
        &Job::new("a")
            .script(&["x"])
            .interrupt_at("on", Reaction::Canceling),
    );
    let script = report.stage("build_script");
    assert!(script.killed, "{}", report.describe());
    assert_eq!(
        script.result,
        Err(Failure::Interrupted(Interruption::Canceling))
    );
}

#[test]
#[should_panic(expected = "left something behind")]
fn process_that_outlives_its_driver_fails_the_test() {
    let drivers = Drivers::new(PREPARE, "sleep 15 &", "");
    let _ = drivers.run(&Job::new("a").script(&["x"]));
}
