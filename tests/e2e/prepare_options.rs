//! Options of `nspawn-prepare`: dry run, JSON, binds, properties, variables, limits.

use std::fs;
use std::process::Command;

use nspawn_common::machine::processes;
use nspawn_tests::{Machine, call, expect_lines, finish, image, left_of, scratch, sh};

use crate::cell::unit_properties;

#[test]
fn dry_run_prints_commands_that_work() {
    let name = format!("dry-{}", std::process::id());
    let printed = call(
        "nspawn-prepare",
        ["--dry-run", "--name", &name, "--setenv=A=b c", &image()],
    )
    .expect(0)
    .out();
    assert_eq!(left_of(&name), "");
    sh(&printed).expect(0);
    let done = call("nspawn-run", [&name, "printenv", "A"]);
    call("nspawn-cleanup", [&name]).expect(0);
    assert_eq!(done.expect(0).out(), "b c\n");
}

#[test]
fn json_option_prints_a_json_description() {
    let name = format!("json-{}", std::process::id());
    let done = call("nspawn-prepare", ["--json", "--name", &name, &image()]).expect(0);
    let value: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    call("nspawn-cleanup", [&name]).expect(0);
    assert_eq!(
        (value["name"].as_str(), value["image"].as_str()),
        (Some(&*name), Some(&*image()))
    );
}

/// Tests each form of a bind mount in systemd-nspawn(1), in a root of each kind.
#[test]
fn bind_options_mean_what_systemd_nspawn_says() {
    let here = scratch("bind-options");
    let place = here.display();
    sh(&format!(
        "cd {place} && mkdir 'a:b' d d/inner e && echo colon >a:b/file && echo file >file && ln -s e link && \
         mount -t tmpfs none d/inner && touch d/inner/inner && chown 1234:5678 d e file"
    ))
    .expect(0);
    for options in [&["--init=stub"][..], &["--init=none", "--layer=none"]] {
        let binds = [
            format!("--bind={place}/a\\:b:/mnt/c\\:d"),
            format!("--bind={place}/d:/mnt/all"),
            format!("--bind={place}/d:/mnt/one:norbind,noidmap"),
            format!("--bind={place}/link:/mnt/link:idmap"),
            format!("--bind={place}/e:/mnt/owner:rootidmap"),
            format!("--bind-ro={place}/d:/mnt/none:norbind,noidmap"),
            format!("--bind-ro={place}/file:/mnt/file:nosymlinks"),
            format!("--bind={place}/file"),
            "--bind=/dev/null:/mnt/null".to_owned(),
            "--bind=+/etc:/mnt/etc".to_owned(),
            "--bind=:/mnt/new".to_owned(),
        ];
        let options: Vec<&str> = options
            .iter()
            .copied()
            .chain(binds.iter().map(String::as_str))
            .collect();
        let machine = Machine::with(&options);
        let script = format!(
            "cd /mnt; cat c:d/file; test -e all/inner/inner; test ! -e one/inner/inner
             stat --format=%u:%g link owner all file none; test -c null; ls -d etc/passwd; touch new/x owner/x
             ! touch file; ! touch none/x; cat {place}/file"
        );
        let done = machine.sh(&format!("set -e; {script}"));
        // The files of users that the machine does not have belong to nobody.
        let expected = "colon\n1234:5678\n0:0\n0:0\n0:0\n65534:65534\netc/passwd\nfile\n";
        assert_eq!(done.out(), expected, "{}", done.describe());
        // Only the unit sees where the launcher has mounted the sources.
        let sources = machine.paths().bind_sources();
        let sources = sources.to_str().unwrap();
        let supervisor = processes::supervisor(&machine.paths());
        assert_eq!(supervisor.is_some(), options.contains(&"--init=stub"));
        if let Some(supervisor) = supervisor {
            let mounts = fs::read_to_string(format!("/proc/{supervisor}/mountinfo")).unwrap();
            assert!(mounts.contains(sources), "{mounts}");
        }
        let mounts = machine.sh("cat /proc/self/mountinfo").out();
        assert!(!mounts.contains(sources), "{mounts}");
        fs::remove_file(here.join("e/x")).unwrap();
    }
    sh(&format!("umount {place}/d/inner")).expect(0);
    fs::remove_dir_all(here).unwrap();
}

#[test]
fn binds_and_properties_are_applied() {
    let dir = std::env::temp_dir().join(format!("e2e bind: $HOME %n {}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("file"), "from the host\n").unwrap();
    let bind = format!(
        "--bind={}:/mnt/rw",
        dir.display().to_string().replace(':', "\\:")
    );
    let mut command = Command::new("nspawn-prepare");
    // The source of the second bind is relative to the working directory.
    let options = [
        &*bind,
        "--bind-ro=.:/mnt/ro",
        "--property=TimeoutStopSec=7s",
        "-p",
        "Nice=3",
        &image(),
    ];
    let done = finish(command.args(options).current_dir(&dir), b"").expect(0);
    let machine = Machine {
        name: done.out().trim_end().to_owned(),
    };
    machine
        .sh("cat /mnt/ro/file && echo back >/mnt/rw/back && ! touch /mnt/ro/x")
        .expect(0);
    assert_eq!(fs::read_to_string(dir.join("back")).unwrap(), "back\n");
    fs::remove_dir_all(&dir).unwrap();
    let unit = format!("nspawn-{}.service", machine.name);
    let shown = unit_properties(&machine, "TimeoutStopUSec,Nice,DevicePolicy,Slice");
    expect_lines(
        &shown,
        &[
            "TimeoutStopUSec=7s",
            "Nice=3",
            "DevicePolicy=closed",
            "Slice=machine-ci.slice",
        ],
    );
    // The payload is in the unit's cgroup, where these properties apply.
    let leader = call(
        "machinectl",
        ["show", "--property=Leader", "--value", &machine.name],
    )
    .expect(0)
    .out();
    let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", leader.trim())).unwrap();
    assert!(
        cgroup.contains(&format!("machine-ci.slice/{unit}/")),
        "{cgroup}"
    );
}

#[test]
fn options_are_read_from_the_environment() {
    let mut command = Command::new("nspawn-prepare");
    command
        .env("NSPAWN_IMAGE", image())
        .env("NSPAWN_SETENV", "A='1 2' B=3")
        .env("NSPAWN_JSON", "no")
        .args(["-E", "B=4"]);
    let name = finish(&mut command, b"").expect(0).out();
    let machine = Machine {
        name: name.trim_end().to_owned(),
    };
    assert_eq!(machine.sh("echo $A-$B").expect(0).out(), "1 2-4\n");
}

#[test]
fn invalid_value_in_the_environment_is_refused() {
    finish(
        Command::new("nspawn-prepare").env("NSPAWN_JSON", "maybe"),
        b"",
    )
    .expect_error(1, "'maybe' for '--json");
}

/// A kernel enforces limits only with their cgroup controllers, which a test host may lack.
#[test]
fn limit_that_is_not_enforced_is_an_error() {
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap();
    for (limit, controller) in [
        ("MemoryMax=700M", "memory"),
        ("TasksMax=900", "pids"),
        ("CPUQuota=50%", "cpu"),
    ] {
        let done = call("nspawn-prepare", ["-p", limit, &image()]);
        if controllers.split_whitespace().any(|one| one == controller) {
            call("nspawn-cleanup", [done.expect(0).out().trim()]).expect(0);
        } else {
            let error = done.expect(1).err();
            assert!(
                error.contains(&format!("its limit {limit} has no effect")),
                "{error}"
            );
        }
    }
    drop(Machine::with(&[
        "-p",
        "MemoryMax=infinity",
        "-p",
        "TasksMax=infinity",
    ]));
}
