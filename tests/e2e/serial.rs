//! End-to-end tests that change the whole host or count its machines: run with `--test-threads=1`.

#![allow(clippy::unwrap_used)]

mod bench;
mod cell;
mod filesystems;
mod filter_cache;
mod loop_devices;
mod machined;
mod package;
mod stale_and_kept;
mod sync;
mod systemd_upgrade;
mod unusual_mounts;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use nspawn_tests::{Machine, call, image, left_of, sh};

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
