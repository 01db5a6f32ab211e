//! Caches that are full, damaged, unusable or unused.

use std::fs;
use std::process::Command;

use nspawn_tests::gitlab_runner::{Outcome, Runner};
use nspawn_tests::{call, keep_stale, remove_stale, sh};

use super::Project;

#[test]
fn full_cache_is_recreated() {
    let project = Project::new();
    let runner = Runner::default().prepare_args(&["--cache-size=32M"]);
    let fill = project.job().script(&[
        "! head -c 50M /dev/zero > /cache/big",
        "test $(stat -c %s /cache/big) -lt 33554432",
    ]);
    let _ = runner.run(&fill).expect(&Outcome::Success);
    let file = &project.files()[0];
    assert!(fs::metadata(file).unwrap().len() <= 32 << 20);
    let _ = runner
        .run(&project.job().script(&["test ! -e /cache/big"]))
        .expect(&Outcome::Success);
    // A cache can also run out of inodes.
    let names = "cd /cache && seq 3900 | xargs touch";
    let _ = runner
        .run(&project.job().script(&[names]))
        .expect(&Outcome::Success);
    let _ = runner
        .run(&project.job().script(&["test ! -e /cache/1"]))
        .expect(&Outcome::Success);
}

/// A crash may leave an empty or damaged file.
#[test]
fn damaged_cache_is_recreated() {
    let project = Project::new();
    let runner = Runner::default().prepare_args(&["--cache-size=32M"]);
    let _ = runner
        .run(&project.job().script(&["touch /cache/kept"]))
        .expect(&Outcome::Success);
    let file = &project.files()[0];
    for broken in ["", "no file system"] {
        fs::write(file, broken).unwrap();
        let _ = runner
            .run(&project.job().script(&["touch /cache/again"]))
            .expect(&Outcome::Success);
        let report = runner
            .run(&project.job().script(&["test -e /cache/again"]))
            .expect(&Outcome::Success);
        assert!(
            !report.log().contains("runs without"),
            "{}",
            report.describe()
        );
    }
}

#[test]
fn job_runs_without_a_cache_that_can_not_be_mounted() {
    let project = Project::new();
    let _ = project.run(&["touch /cache/kept"]);
    let file = project.files()[0].clone();
    sh(&format!("mv {file} {file}.away && mkdir {file}")).expect(0);
    let report = project.run(&["true"]);
    report.expect_log("the job runs without its project's cache: ");
    sh(&format!("rmdir {file} && mv {file}.away {file}")).expect(0);
    let _ = project.run(&["test -e /cache/kept"]);
}

#[test]
fn unused_cache_is_stale_after_30_days() {
    let project = Project::new();
    let _ = project.run(&["touch /cache/x"]);
    remove_stale();
    assert_eq!(project.files().len(), 1);
    let guard = keep_stale();
    let aged = Command::new("touch")
        .args(["--date=-31 days", &project.files()[0]])
        .status()
        .unwrap();
    assert!(aged.success());
    // The directory has a lost+found if it is a separate file system.
    sh("mkdir -p /var/cache/nspawn-ci/lost+found; touch --date='-31 days' /var/cache/nspawn-ci/lost+found").expect(0);
    let dry = call("nspawn-cleanup", ["--stale", "--dry-run"]).expect(0);
    dry.expect_out(&project.files()[0]);
    drop(guard);
    remove_stale();
    assert!(project.files().is_empty());
    sh("rmdir /var/cache/nspawn-ci/lost+found").expect(0);
}
