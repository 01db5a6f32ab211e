//! The checks of [`Cell`] for each combination of `--init` and `--layer`, and GitLab jobs in some.

use std::time::Duration;

use nspawn_tests::gitlab_runner::{Job, Outcome, Runner};
use nspawn_tests::{call, image, left_of, sh};

use crate::cell::{Cell, Sleep, unit_properties};

macro_rules! cells {
    ($($name:ident: $init:literal, $layer:literal;)*) => {
        $(#[test]
        fn $name() {
            check($init, $layer);
        })*
    };
}

cells! {
    systemd_on_disk: "systemd", "disk";
    systemd_on_tmpfs: "systemd", "tmpfs";
    systemd_on_snapshot: "systemd", "snapshot";
    systemd_on_none: "systemd", "none";
    stub_on_disk: "stub", "disk";
    stub_on_tmpfs: "stub", "tmpfs";
    stub_on_snapshot: "stub", "snapshot";
    stub_on_none: "stub", "none";
    none_on_disk: "none", "disk";
    none_on_tmpfs: "none", "tmpfs";
    none_on_snapshot: "none", "snapshot";
    none_on_none: "none", "none";
}

// Most hosts have a file system that can't share blocks, so `filesystems` covers snapshots.
fn check(init: &'static str, layer: &'static str) {
    let image = image();
    let cell = Cell {
        init,
        layer,
        image: &image,
    };
    let system = sh("stat --file-system --format=%T /var/lib")
        .expect(0)
        .out();
    if layer != "snapshot" || ["btrfs\n", "xfs\n"].contains(&&*system) {
        return cell.check();
    }
    let name = format!("no-snapshot-{init}-{}", std::process::id());
    let done = cell.prepare(&["--name", &name]);
    for words in [
        "/var/lib/nspawn-ci on one btrfs or xfs file system",
        "--layer=disk needs neither",
    ] {
        assert!(done.err().contains(words), "{}", done.describe());
    }
    done.expect_error(1, "can't let a copy share the image's blocks");
    assert_eq!(left_of(&name), "");
}

fn check_gitlab_job(init: &'static str, layer: &'static str) {
    let image = image();
    let sleep = Sleep::new();
    let job = Job::new(&image)
        .stage("get_sources", &["echo source > file", "mkdir -p /root/bin"])
        .stage(
            "restore_cache",
            &[
                "echo cached > /root/cache",
                &format!("{} &", sleep.command()),
            ],
        )
        .script(&[
            "cat file /root/cache",
            "pwd",
            &format!(
                "pgrep -xf '{}' >/dev/null && echo runs || echo ended",
                sleep.command()
            ),
            "echo built > product",
            "exit 7",
        ])
        .after_script(&["cat product", "echo \"it was $CI_JOB_STATUS\""])
        .stage("upload_artifacts_on_failure", &["cat product"]);
    let options = Cell {
        init,
        layer,
        image: &image,
    }
    .options();
    let runner = Runner::default().prepare_args(&options.each_ref().map(String::as_str));
    let report = runner.run(&job).expect(&Outcome::ScriptFailure(7));
    let process = if init == "none" { "ended" } else { "runs" };
    let text = format!("source\ncached\n/builds/group/project\n{process}\n");
    assert_eq!(report.stage("build_script").text(), text);
    assert_eq!(
        report.stage("after_script").text(),
        "built\nit was failed\n"
    );
    assert_eq!(
        report.stage("upload_artifacts_on_failure").text(),
        "built\n"
    );
    assert_eq!(left_of(&report.machine), "");
    assert!(!sleep.is_running());
}

#[test]
fn gitlab_job_runs_with_stub_on_disk() {
    check_gitlab_job("stub", "disk");
}

#[test]
fn gitlab_job_runs_with_none_on_disk() {
    check_gitlab_job("none", "disk");
}

#[test]
fn gitlab_job_runs_with_systemd_on_tmpfs() {
    check_gitlab_job("systemd", "tmpfs");
}

#[test]
fn concurrent_commands_share_a_machine_without_init() {
    let image = image();
    for layer in ["disk", "none"] {
        let machine = Cell {
            init: "none",
            layer,
            image: &image,
        }
        .machine(&[]);
        std::thread::scope(|scope| {
            for code in 40..46 {
                let machine = &machine;
                scope.spawn(move || {
                    (0..4).for_each(|_| drop(machine.sh(&format!("exit {code}")).expect(code)))
                });
            }
        });
        assert_eq!(
            unit_properties(&machine, "ActiveState"),
            "ActiveState=inactive\n"
        );
        call("nspawn-cleanup", [&machine.name]).expect(0);
        assert_eq!(left_of(&machine.name), "");
    }
}

/// Tests that no run creates anything again for a machine that has been removed.
#[test]
fn cleanup_at_any_moment_of_a_run_leaves_nothing() {
    let image = image();
    for moment in 0..8 {
        let machine = Cell {
            init: "none",
            layer: "tmpfs",
            image: &image,
        }
        .machine(&[]);
        std::thread::scope(|scope| {
            (0..3).for_each(|_| drop(scope.spawn(|| machine.run(["sleep", "0.1"]))));
            std::thread::sleep(Duration::from_millis(60 * moment));
            call("nspawn-cleanup", [&machine.name]).expect(0);
        });
        assert_eq!(left_of(&machine.name), "", "{moment}");
    }
}
