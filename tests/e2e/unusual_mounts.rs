//! Hosts with an unusual mount table. Each test undoes its change at its end.

use std::fs;

use nspawn_tests::{Machine, call, image, left_of, sh};

/// A change of the host that is undone on drop.
struct Change(&'static str);

impl Change {
    #[track_caller]
    fn make(change: &str, undo: &'static str) -> Self {
        let this = Self(undo);
        sh(change).expect(0);
        this
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        let _ = sh(self.0);
    }
}

fn check_every_init(layer: &str) {
    for init in ["systemd", "stub", "none"] {
        let machine = Machine::with(&[&format!("--init={init}"), layer]);
        let done = machine
            .sh("cd /root && cp /bin/true program && ./program && cat /proc/mounts")
            .expect(0);
        let mounts = done.out();
        let root = mounts
            .lines()
            .rfind(|line| line.split(' ').nth(1) == Some("/"))
            .unwrap();
        assert!(
            !root.contains("noexec") && !root.contains("nosuid"),
            "{init} {layer}: {root}"
        );
        call("nspawn-cleanup", [&machine.name]).expect(0);
        assert_eq!(left_of(&machine.name), "", "{init} {layer}");
    }
}

#[test]
fn machines_work_with_a_read_only_etc() {
    let _change = Change::make(
        "mount --bind /etc /etc && mount -o remount,bind,ro /etc",
        "umount /etc",
    );
    check_every_init("--layer=disk");
}

#[test]
fn machines_work_with_a_full_tmp() {
    let full = "mount -t tmpfs -o size=64k,nr_inodes=2 none /tmp && ! head -c 1M /dev/zero 2>/dev/null >/tmp/full";
    let _change = Change::make(full, "umount /tmp");
    check_every_init("--layer=disk");
}

/// Tests a /var that is hardened as security guides recommend: nosuid, nodev, noexec.
#[test]
fn machines_work_with_a_noexec_nodev_var() {
    let image = image();
    fs::create_dir_all("/var/lib/nspawn-ci").unwrap();
    let harden = format!(
        "for place in /var/lib/nspawn-ci /var/lib/machines/{image}; do \
         mount --bind $place $place && mount -o remount,bind,nosuid,nodev,noexec $place || exit 1; done"
    );
    let _change = Change::make(
        &harden,
        "umount /var/lib/nspawn-ci; umount /var/lib/machines/$(. /etc/os-release; echo $VERSION_CODENAME)",
    );
    for layer in [
        "--layer=disk",
        "--layer-size=infinity",
        "--layer=tmpfs",
        "--layer=none",
    ] {
        check_every_init(layer);
    }
}

#[test]
fn full_run_is_reported_before_anything_is_made() {
    let machines = ["systemd", "none"].map(|init| Machine::with(&[&format!("--init={init}")]));
    let full = "findmnt --noheadings --output OPTIONS /run | grep -o 'size=[0-9]*k' >/dev/shm/e2e-run-size && \
        mount -o remount,size=$(($(df --output=used -k /run | tail -n 1) + 64))k /run";
    let change = Change::make(
        full,
        "mount -o remount,$(cat /dev/shm/e2e-run-size) /run; rm /dev/shm/e2e-run-size",
    );
    let words = "/run, which holds the state of machines, is full";
    let prepared = call("nspawn-prepare", ["--name=no-room", &image()]);
    let ran = machines.each_ref().map(|machine| machine.run(["true"]));
    let removed = machines
        .each_ref()
        .map(|machine| call("nspawn-cleanup", [&machine.name]));
    drop(change);
    prepared.expect_error(1, words);
    assert_eq!(left_of("no-room"), "");
    let [booted, started] = ran;
    booted.expect(0);
    started.expect_error(125, words);
    for (machine, done) in machines.iter().zip(removed) {
        done.expect(0);
        assert_eq!(left_of(&machine.name), "");
    }
}
