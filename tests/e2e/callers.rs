//! Who calls: environments without the usual variables, and units that take something from their programs. A machine is
//! made, used and removed, or the programs say what to change before anything is made.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use nspawn_tests::{Done, Machine, finish, image, left_of, sh};

/// What a command in a machine has, whoever calls.
const LOOK: &str = "echo $PATH; umask; pwd; exit 3";

fn name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!(
        "caller-{}-{}",
        std::process::id(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    )
}

/// The directory of the programs, which a caller may not have on PATH.
fn programs() -> String {
    sh("dirname $(command -v nspawn-prepare)")
        .expect(0)
        .out()
        .trim_end()
        .to_owned()
}

/// The words before a program of somebody who calls it.
struct Caller(Vec<String>);

impl Caller {
    fn of(words: &[&str]) -> Self {
        Self(words.iter().map(ToString::to_string).collect())
    }

    fn unit(properties: &str) -> Self {
        let mut words = Self::of(&[
            "systemd-run",
            "--quiet",
            "--collect",
            "--pipe",
            "--wait",
            "--setenv=PATH",
        ]);
        words.0.extend(
            properties
                .split(' ')
                .map(|property| format!("--property={property}")),
        );
        words
    }

    fn call(&self, words: &[&str]) -> Done {
        finish(Command::new(&self.0[0]).args(&self.0[1..]).args(words), b"")
    }

    /// Makes, uses and removes a machine; returns what a command saw in it.
    fn sees(&self, options: &[&str], script: &str) -> String {
        let (name, image) = (name(), image());
        self.call(&[&["nspawn-prepare", "--name", &name], options, &[&image]].concat())
            .expect(0);
        let done = self
            .call(&["nspawn-run", &name, "sh", "-c", script])
            .expect(3);
        self.call(&["nspawn-cleanup", &name]).expect(0);
        assert_eq!(left_of(&name), "", "{:?} {options:?}", self.0);
        done.out()
    }

    /// No machine is made, and the line says `words`; one that is there is used and removed, or the same is said.
    fn is_refused(&self, options: &[&str], words: &str) {
        let (name, image) = (name(), image());
        let done = self.call(&[&["nspawn-prepare", "--name", &name], options, &[&image]].concat());
        let _ = done.expect_error(1, words);
        assert_eq!(left_of(&name), "", "{:?}", self.0);
        let machine = Machine::with(options);
        let done = self.call(&["nspawn-run", &machine.name, "true"]);
        if done.code() != 0 {
            let _ = done.expect_error(125, words);
        }
        let done = self.call(&["nspawn-cleanup", &machine.name]);
        if done.code() == 0 {
            assert_eq!(left_of(&machine.name), "", "{:?}", self.0);
        } else {
            let _ = done.expect_error(1, words);
            // And nothing is half removed.
            machine.run(["true"]).expect(0);
        }
    }
}

#[test]
fn environments_without_the_usual_variables_change_nothing() {
    let path = format!("PATH={}:/usr/bin:/bin", programs());
    let usual = Caller::of(&["env"]).sees(&["--init=stub"], LOOK);
    let gone = "cd \"$(mktemp -d)\"; rmdir \"$PWD\"; exec \"$@\"";
    for caller in [
        &["env", &*path][..],
        &["env", "-i", &path],
        &["env", "--unset=HOME", "TMPDIR=/nonexistent"],
        &["sh", "-c", "umask 077; exec \"$@\"", "-"],
        &["sh", "-c", gone, "-"],
        &["env", "LANG=de_DE.ISO-8859-1", "LANGUAGE=de"],
        &["env", "LC_ALL=xx"],
        &["env", "LANG=ja_JP.eucJP", "LC_ALL=ja_JP.eucJP"],
    ] {
        for init in ["systemd", "stub", "none"] {
            let seen = Caller::of(caller).sees(&[&format!("--init={init}")], LOOK);
            assert_eq!(seen, usual, "{caller:?} --init={init}");
        }
    }
}

#[test]
fn scripts_find_what_cron_has_not_on_its_path() {
    let exec = sh("command -v nspawn-exec").expect(0).out();
    let checker = sh("command -v check-host").expect(0).out();
    let image_script = sh("command -v nspawn-image").expect(0).out();
    // Beside each other, as they are installed.
    let place = format!("/run/{}", name());
    let link = format!(
        "mkdir -p {place}/bin {place}/lib/nspawn-ci; ln -s {0}/nspawn-* {place}/bin; \
         cp {1} {place}/bin; cp $(dirname {1})/../lib.sh {place}/lib/nspawn-ci",
        programs(),
        exec.trim_end()
    );
    sh(&link).expect(0);
    let cron = Caller::of(&["env", "-i", "PATH=/usr/bin:/bin"]);
    let done = cron.call(&[
        &format!("{place}/bin/nspawn-exec"),
        "--init=stub",
        &image(),
        "sh",
        "-c",
        LOOK,
    ]);
    sh(&format!("rm -r {place}")).expect(0);
    let _ = done.expect(3);
    let cron = Caller::of(&["env", "-i", &format!("PATH=/usr/bin:/bin:{}", programs())]);
    let checked = cron.call(&[checker.trim_end(), "--no-boot"]);
    assert!(
        checked.out().contains("ok    all programs"),
        "{}",
        checked.describe()
    );
    let _ = cron.call(&[image_script.trim_end(), "list"]).expect(0);
}

/// `systemd.exec(5)`
#[test]
fn units_with_mounts_of_their_own_hold_limits() {
    let size = "df --output=size -k / | tail -n 1; exit 3";
    for properties in ["PrivateTmp=yes", "ProtectHome=yes ProtectSystem=full"] {
        for init in ["systemd", "stub", "none"] {
            let options = [&*format!("--init={init}"), "--layer=tmpfs:64M"];
            let seen = Caller::unit(properties).sees(&options, size);
            assert_eq!(seen.trim(), "65536", "{properties} {init}");
        }
    }
    // Its mounts follow none of the host's.
    let private = Caller::unit("PrivateMounts=yes MountFlags=private");
    let options = [
        "nspawn-prepare",
        "--init=none",
        "--layer=tmpfs:64M",
        &image(),
    ];
    let machine = Machine {
        name: private.call(&options).expect(0).out().trim_end().to_owned(),
    };
    let seen = private
        .call(&["nspawn-run", &machine.name, "sh", "-c", size])
        .expect(3);
    assert_eq!(seen.out().trim(), "65536");
}

#[test]
fn a_layer_that_was_unmounted_is_not_taken_for_a_bounded_one() {
    let machine = Machine::with(&["--init=none", "--layer=tmpfs:64M"]);
    machine.run(["touch", "/root/file"]).expect(0);
    sh(&format!("umount /run/nspawn-ci/{}/disk", machine.name)).expect(0);
    let done = machine.run(["true"]);
    let _ = done.expect_error(125, "the layer in memory is not mounted");
}

#[test]
fn units_that_take_nothing_that_is_needed_work() {
    for properties in [
        "PrivateDevices=yes",
        "PrivateNetwork=yes RestrictAddressFamilies=AF_UNIX",
        "ProtectProc=invisible ProcSubset=pid",
        "ProtectControlGroups=yes ProtectKernelTunables=yes ProtectKernelModules=yes ProtectKernelLogs=yes",
        "NoNewPrivileges=yes RestrictNamespaces=yes RestrictRealtime=yes LockPersonality=yes",
        "SystemCallFilter=@system-service SystemCallArchitectures=native MemoryDenyWriteExecute=yes",
        "PrivateIPC=yes ProtectHostname=yes ProtectClock=yes UMask=0077 LimitNOFILE=64",
    ] {
        for init in ["systemd", "none"] {
            let _ = Caller::unit(properties).sees(&[&format!("--init={init}")], LOOK);
        }
    }
    sh("install -d -m 0700 /var/lib/nspawn-ci /var/cache/nspawn-ci").expect(0);
    let strict = "ProtectSystem=strict ReadWritePaths=/run";
    let _ = Caller::unit(&format!(
        "{strict} ReadWritePaths=/var/lib ReadWritePaths=/var/cache"
    ))
    .sees(&[], LOOK);
}

#[test]
fn units_that_take_what_is_needed_are_told_the_setting() {
    for (properties, words) in [
        (
            "ProtectSystem=strict",
            "/run/nspawn-ci is read-only here, and machines need /run/nspawn-ci; add ReadWritePaths=",
        ),
        (
            "ReadOnlyPaths=/var",
            "and machines need /var/lib/nspawn-ci/machines; add ReadWritePaths=/run /var/lib /var/cache",
        ),
        ("PrivateUsers=yes", "set PrivateUsers=no in the unit"),
        (
            "CapabilityBoundingSet=~CAP_SYS_PTRACE",
            "root lacks CAP_SYS_PTRACE here; add it to CapabilityBoundingSet=",
        ),
        (
            "CapabilityBoundingSet=~CAP_CHOWN",
            "root lacks CAP_CHOWN here",
        ),
        (
            "RestrictSUIDSGID=yes",
            "set RestrictSUIDSGID=no in the unit",
        ),
    ] {
        for init in ["stub", "none"] {
            Caller::unit(properties).is_refused(&[&format!("--init={init}")], words);
        }
    }
    Caller::of(&["sh", "-c", "ulimit -f 2048; exec \"$@\"", "-"])
        .is_refused(&["--init=stub"], "ulimit -f unlimited");
    // systemd 257 and newer.
    if Caller::unit("PrivatePIDs=yes").call(&["true"]).code() == 0 {
        Caller::unit("PrivatePIDs=yes").is_refused(&["--init=stub"], "set PrivatePIDs=no");
    }
}
