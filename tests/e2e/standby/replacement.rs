//! Standby machines that do not match a request or do not work, and are replaced.

use std::fs;

use nspawn_tests::{left_of, sh};

use super::{Pool, origin, wait_until_removed};

#[test]
fn machine_with_other_options_is_not_taken_over() {
    let pool = Pool::new("other", 1, &["--network=none"]);
    let shown = std::env::temp_dir().join(format!("e2e-standby-{}", std::process::id()));
    let bind = format!("--bind-ro={}:/mnt", shown.display());
    fs::create_dir_all(&shown).unwrap();
    for options in [
        &["--network=nat"][..],
        &["--property=LimitNOFILE=5000"],
        &["--layer=tmpfs"],
        &["--layer-size=1G"],
        &["--init=stub"],
        &["--private-users=no"],
        &["--drop-capability=CAP_MKNOD"],
        &["--no-new-privileges"],
        &["--mask=cron.service"],
        &["--property=RuntimeMaxSec=1h"],
        &[&bind],
    ] {
        let machine = pool.prepare(options);
        assert_eq!(origin(&machine), None, "{options:?}");
        machine.run(["true"]).expect(0);
    }
    fs::remove_dir(&shown).unwrap();
    assert!(origin(&pool.prepare(&["--timeout=100s", "--keep=failure", "--verbose"])).is_some());
}

#[test]
fn machine_is_replaced_after_its_bound_directory_changes() {
    let shown = "/run/e2e-standby-shown";
    fs::create_dir_all(shown).unwrap();
    let pool = Pool::new(
        "directory",
        1,
        &["--network=none", "--bind-ro=/run/e2e-standby-shown:/mnt"],
    );
    let before = pool.names();
    // Replace the directory with another one of the same name.
    fs::rename(shown, format!("{shown}.old")).unwrap();
    fs::create_dir(shown).unwrap();
    let machine = pool.prepare(&[]);
    assert_eq!(origin(&machine), None);
    wait_until_removed(&before[0]);
    pool.wait_for(1);
    assert!(origin(&pool.prepare(&[])).is_some());
    drop((machine, pool));
    sh(&format!("rm -rf {shown} {shown}.old")).expect(0);
}

#[test]
fn machine_is_not_taken_over_after_its_image_changes() {
    let pool = Pool::new("tree", 1, &["--network=none"]);
    let link = format!("/var/lib/machines/{}", pool.image);
    sh(&format!(
        "mkdir {link}.tree && cp --archive {link}/. {link}.tree && ln -sfn {link}.tree {link}"
    ))
    .expect(0);
    let machine = pool.prepare(&[]);
    let taken = origin(&machine);
    drop((machine, pool));
    sh(&format!("rm -rf {link}.tree")).expect(0);
    assert_eq!(taken, None);
}

#[test]
fn machine_is_taken_over_after_a_bound_file_changes_its_content() {
    let file = "/run/e2e-standby-file";
    fs::write(file, "one").unwrap();
    let pool = Pool::new(
        "file",
        1,
        &[
            "--network=none",
            "--init=stub",
            "--bind-ro=/run/e2e-standby-file:/mnt/file",
        ],
    );
    fs::write(file, "two").unwrap();
    let machine = pool.prepare(&[]);
    assert!(origin(&machine).is_some());
    assert_eq!(machine.run(["cat", "/mnt/file"]).expect(0).out(), "two");
    drop((machine, pool));
    fs::remove_file(file).unwrap();
}

#[test]
fn frozen_machine_is_replaced() {
    let pool = Pool::new("frozen", 1, &["--network=none"]);
    let before = pool.names();
    sh(&format!("systemctl freeze nspawn-{}.service", before[0])).expect(0);
    let mut machine = pool.prepare(&[]);
    // nspawn-prepare skips a standby machine that another process has locked for some time.
    while fs::exists(format!("/run/nspawn-ci/{}/specification", before[0])).unwrap() {
        machine = pool.prepare(&[]);
    }
    assert_eq!(origin(&machine), None);
    machine.run(["true"]).expect(0);
    wait_until_removed(&before[0]);
    pool.wait_for(1);
    assert_eq!(left_of(&before[0]), "");
}

#[test]
fn dead_machine_is_replaced() {
    let pool = Pool::new("dead", 1, &["--init=stub", "--layer=tmpfs"]);
    let before = pool.names();
    sh(&format!(
        "systemctl kill --signal=KILL nspawn-{}.service",
        before[0]
    ))
    .expect(0);
    let machine = pool.prepare(&[]);
    assert_ne!(origin(&machine).as_ref(), before.first());
    machine.run(["true"]).expect(0);
    wait_until_removed(&before[0]);
    pool.wait_for(1);
    assert_eq!(left_of(&before[0]), "");
}
