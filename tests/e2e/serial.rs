//! End-to-end tests that change the whole host or count its machines: run with `--test-threads=1`.

#![allow(clippy::unwrap_used)]

mod bench;
mod cell;
mod filesystems;
mod filter_cache;
mod loop_devices;
mod package;
mod stale_and_kept;
mod sync;
mod systemd_upgrade;
mod unusual_mounts;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use nspawn_tests::{BackgroundCommand, Machine, call, image, left_of, sh};

#[test]
fn cleanup_all_removes_every_machine() {
    let machines = [Machine::new(), Machine::new()];
    call("nspawn-cleanup", ["--all"]).expect(0);
    for machine in &machines {
        assert_eq!(left_of(&machine.name), "");
    }
    assert_eq!(
        sh("ls /run/nspawn-ci /var/lib/nspawn-ci/machines | grep -v :$")
            .out()
            .trim(),
        ""
    );
    call("nspawn-cleanup", ["--all"]).expect(0);
}

#[test]
fn time_zone_of_the_host_does_not_reach_the_machine() {
    let link = "/etc/localtime";
    let before = fs::read_link(link).unwrap();
    let replace = |target: &Path| {
        let new = "/etc/localtime.e2e";
        symlink(target, new).unwrap();
        fs::rename(new, link).unwrap();
    };
    replace("/usr/share/zoneinfo/Asia/Tokyo".as_ref());
    let host = call("date", ["+%Z"]).out();
    let inits = ["--init=systemd", "--init=stub", "--init=none"];
    let zones = inits.map(|init| Machine::with(&[init]).sh("date +%Z; readlink /etc/localtime"));
    replace(&before);
    assert_eq!(host, "JST\n");
    for (zone, init) in zones.iter().zip(inits) {
        let out = zone.out();
        assert!(
            out.starts_with("UTC\n") && !out.contains("Tokyo"),
            "{init}: {out}"
        );
    }
}

#[test]
fn machines_leave_no_files_in_tmp() {
    let list = || sh("ls -d /tmp/nspawn* 2>/dev/null; ls /tmp | wc -l").out();
    let before = list();
    drop([Machine::new(), Machine::new()]);
    assert_eq!(list(), before);
}

#[test]
fn prepare_fails_clearly_without_machined() {
    let name = "no-machined";
    let _ = sh("systemctl mask --runtime --now systemd-machined.service systemd-machined.socket");
    let done = call("nspawn-prepare", ["--name", name, &image()]);
    sh("systemctl unmask --runtime systemd-machined.service systemd-machined.socket; systemctl start systemd-machined")
        .expect(0);
    done.expect_err("systemd-machined is not running");
    done.expect_error(1, "did not start");
    assert_eq!(left_of(name), "");
}

#[test]
fn cleanup_works_after_restart_of_dbus_or_machined() {
    for restart in [
        "systemctl restart dbus",
        "systemctl kill --signal=KILL systemd-machined",
    ] {
        let machine = Machine::new();
        sh(&format!("{restart}; sleep 0.5")).expect(0);
        call("nspawn-cleanup", [&machine.name]).expect(0);
        assert_eq!(left_of(&machine.name), "");
    }
}

/// Tests that a taken-over machine stays registered while systemd-machined is busy.
///
/// nspawn-prepare unregisters a standby machine and registers it under its new name.
/// systemd-machined forgets the old name only when it is idle.
#[test]
fn busy_machined_keeps_machines_from_standby_registered() {
    let options = ["--init=stub", "--network=none", &image()];
    let pool =
        |count: &'static str| call("nspawn-prepare", [count].iter().chain(&options)).expect(0);
    pool("--standby=3");
    let busy = "for i in 1 2 3 4 5 6; do (while test -d /run/e2e-busy; do machinectl list >/dev/null; done) & done";
    let busy = std::thread::spawn(move || sh(&format!("mkdir /run/e2e-busy; {busy}; wait")));
    let machines: Vec<_> = (0..3).map(|_| call("nspawn-prepare", options)).collect();
    sh("rmdir /run/e2e-busy").expect(0);
    busy.join().unwrap().expect(0);
    for prepared in machines {
        let machine = Machine {
            name: prepared.expect(0).out().trim_end().to_owned(),
        };
        machine.run(["true"]).expect(0);
        call("machinectl", ["show", &machine.name]).expect(0);
    }
    pool("--standby=0");
}

/// Tests that a machine starts again although systemd-machined has not yet noticed its end.
#[test]
fn machine_starts_again_before_machined_has_noticed_its_end() {
    let machine = Machine::with(&["--init=none"]);
    let unit = format!("nspawn-{}.service", machine.name);
    for _ in 0..5 {
        let running = BackgroundCommand::start(&machine, "echo on; sleep 60");
        sh("systemctl kill --signal=STOP systemd-machined").expect(0);
        sh(&format!("systemctl kill --signal=KILL {unit}")).expect(0);
        running.wait().expect_error(125, "(SIGKILL)");
        let resume =
            std::thread::spawn(|| sh("sleep 0.3; systemctl kill --signal=CONT systemd-machined"));
        let next = machine.run(["true"]);
        resume.join().unwrap().expect(0);
        next.expect(0);
    }
}

#[test]
fn options_override_argument_files() {
    let image_file = format!("/etc/nspawn-ci/images/{}.args", image());
    fs::create_dir_all("/etc/nspawn-ci/images").unwrap();
    fs::write(
        "/etc/nspawn-ci/prepare.args",
        "# all images\n--setenv A=1 --setenv 'B=1 1'\n--default-image=none\n",
    )
    .unwrap();
    fs::write(
        &image_file,
        format!("--setenv=B=2 # this one\n--default-image={}\n", image()),
    )
    .unwrap();
    let machine = Machine::with(&["--setenv=C=3"]);
    let unreadable = {
        fs::write("/etc/nspawn-ci/prepare.args", "--setenv 'open").unwrap();
        call("nspawn-prepare", [&image()])
    };
    // The last value of an option wins, even when it is `no`.
    fs::write("/etc/nspawn-ci/run.args", "--pty").unwrap();
    let [on, off] = [&[][..], &["--pty=no"]]
        .map(|options| call("nspawn-run", options.iter().chain(&[&*machine.name, "tty"])));
    fs::remove_dir_all("/etc/nspawn-ci").unwrap();
    on.expect(0);
    off.expect(1);
    assert_eq!(machine.sh("echo $A-$B-$C").expect(0).out(), "1-2-3\n");
    unreadable.expect_error(1, "/etc/nspawn-ci/prepare.args");
}
