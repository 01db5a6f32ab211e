//! Adding, withdrawing and deleting versions.

use std::fs;
use std::process::Command;

use nspawn_tests::{Machine, call, finish, sh};

use crate::lab::{BOOTS, Image, SMALL, expect_failure, listed, script, wait_for, write_script};

/// Options for an update without the steps that take long.
const FAST: [&str; 2] = ["--no-upgrade", "--no-boot-test"];

#[test]
fn update_adds_a_version_and_rollback_returns_to_the_previous_one() {
    let count = script("echo x >>/count");
    let image = Image::from_tar("forth", &SMALL, &["--script", count.to_str().unwrap()]);
    let first = image.current();
    image.run("update", &FAST).expect(0);
    let second = image.current();
    image.run("update", &FAST).expect(0);
    assert_eq!(image.read("count"), "x\nx\nx\n");
    // The version before the current one stays.
    assert_eq!(image.versions(), [second.clone(), image.current()]);
    assert!(first < second && second < image.current());
    let third = image.current();
    image.run("rollback", &[]).expect(0);
    assert_eq!(
        (image.current(), image.read("count")),
        (second.clone(), "x\nx\n".to_owned())
    );
    expect_failure(image.run("rollback", &[]), "no version before");
    assert!(
        listed(&image.name)
            .unwrap()
            .ends_with(third.strip_prefix(&format!("{}_", image.name)).unwrap())
    );
    // The version that was withdrawn is no target of a rollback.
    image.run("update", &FAST).expect(0);
    assert_eq!(image.versions(), [second.clone(), image.current()]);
    assert_eq!(image.read("count"), "x\nx\nx\n");
    image.run("rollback", &[]).expect(0);
    assert_eq!(image.current(), second);
    // A killed nspawn-image may leave this mark without its version.
    fs::write(
        image
            .versions_dir()
            .join(format!(".{}_20200101T000000.withdrawn", image.name)),
        "",
    )
    .unwrap();
    image.run("prune", &["--keep=0"]).expect(0);
    assert_eq!(image.versions(), [second]);
    assert_eq!(
        (
            image.leftovers(),
            fs::read_dir(image.versions_dir()).unwrap().count()
        ),
        (String::new(), 1)
    );
}

#[test]
fn rollback_never_returns_to_a_withdrawn_version() {
    let image = Image::from_tar("withdrawn", &SMALL, &[]);
    let good = image.current();
    image.run("update", &FAST).expect(0);
    let bad = image.versions_dir().join(image.current());
    image.run("rollback", &[]).expect(0);
    // The lock stands for a machine in preparation, which keeps the version from being deleted.
    let bad = sh(&format!(
        "stat --format=/run/nspawn-image/.tree-%d-%i {}",
        bad.display()
    ));
    let lock = bad.out().trim_end().to_owned();
    let mut holder = Command::new("flock")
        .args(["--shared", "--no-fork"])
        .arg(&lock)
        .args(["sleep", "100"])
        .spawn()
        .unwrap();
    sh(&format!(
        "until ! flock --nonblock {lock} true; do sleep 0.05; done"
    ))
    .expect(0);
    let done = image.run("update", &FAST).expect(0);
    done.expect_err("stays for the machines that use it: one in the making");
    assert_eq!(image.versions().len(), 3);
    image.run("rollback", &[]).expect(0);
    assert_eq!(image.current(), good);
    holder.kill().unwrap();
    holder.wait().unwrap();
}

#[test]
fn running_machine_keeps_its_version() {
    let image = Image::from_tar("kept", &BOOTS, &["--no-boot-test"]);
    let first = image.current();
    let name = call("nspawn-prepare", [&image.name]).expect(0).out();
    let machine = Machine {
        name: name.trim_end().to_owned(),
    };
    for _ in 0..2 {
        image.run("update", &FAST).expect(0);
    }
    let done = image.run("prune", &["--keep=0"]).expect(0);
    assert!(done.err().contains(&format!(
        "{first} stays for the machines that use it: {}",
        machine.name
    )));
    assert_eq!(image.versions(), [first.clone(), image.current()]);
    assert_eq!(
        listed(&image.name).unwrap().split_whitespace().nth(3),
        Some("1")
    );
    machine.run(["cat", "/etc/os-release"]).expect(0);
    expect_failure(image.run("remove", &[]), "is still in use");
    drop(machine);
    image.run("remove", &[]).expect(0);
    assert!(!image.versions_dir().exists());
}

#[test]
fn successful_login_becomes_the_next_version() {
    let image = Image::from_tar("login", &SMALL, &[]);
    let before = image.current();
    let enter = |lines: &str| finish(&mut image.command("login", &[]), lines.as_bytes());
    expect_failure(
        enter("touch /lost; exit 3"),
        "is unchanged: the shell ended with exit status 3",
    );
    assert_eq!(image.current(), before);
    enter("touch /found; echo here").expect(0);
    assert_ne!(image.current(), before);
    assert!(image.file("found").exists() && !image.file("lost").exists());
    assert_eq!(image.leftovers(), "");
}

#[test]
fn only_one_command_at_a_time_changes_an_image() {
    let slow = script("true");
    let image = Image::from_tar("busy", &SMALL, &["--script", slow.to_str().unwrap()]);
    image.run("update", &FAST).expect(0);
    write_script(&slow, "sleep 12");
    let mut first = image.start_update(&FAST);
    wait_for(&format!("ls -d /var/lib/machines/.{}.*/tree", image.name));
    for verb in ["update", "rollback"] {
        expect_failure(image.run(verb, &[]), "another nspawn-image is at work on");
    }
    image.run("prune", &[]).expect(0);
    assert!(first.wait().unwrap().success());
    assert_eq!(
        (image.versions().len(), image.leftovers()),
        (2, String::new())
    );
}
