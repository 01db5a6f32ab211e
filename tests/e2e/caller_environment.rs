//! Callers with an unusual environment: missing variables, and units with sandboxing options.
//!
//! Either a machine is created, used and removed as usual, or the programs name the setting to
//! change before they create anything.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use nspawn_tests::{Done, Machine, finish, image, left_of, sh};

/// Prints properties of a command that must not depend on the caller, and exits with 3.
const PRINT_ENVIRONMENT: &str = "echo $PATH; umask; pwd; exit 3";

/// Prints the size of the root file system in KiB, and exits with 3.
const PRINT_SIZE: &str = "df --output=size -k / | tail -n 1; exit 3";

fn name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!(
        "caller-{}-{}",
        std::process::id(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    )
}

/// Returns the directory of the programs, which a caller may not have on its PATH.
fn programs() -> String {
    sh("dirname $(command -v nspawn-prepare)")
        .expect(0)
        .out()
        .trim_end()
        .to_owned()
}

/// A caller, given by the words to put before a program and its arguments.
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

    /// Creates, uses and removes a machine, and returns the output of `script` in it.
    fn output_of(&self, options: &[&str], script: &str) -> String {
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

    /// Expects that prepare fails with `words` and creates no machine.
    ///
    /// An existing machine is either used and removed, or refused with the same words.
    fn expect_refused(&self, options: &[&str], words: &str) {
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
            // A refused cleanup leaves the machine intact.
            machine.run(["true"]).expect(0);
        }
    }
}

#[test]
fn unusual_environment_of_the_caller_does_not_reach_the_machine() {
    let path = format!("PATH={}:/usr/bin:/bin", programs());
    let usual = Caller::of(&["env"]).output_of(&["--init=stub"], PRINT_ENVIRONMENT);
    let in_removed_directory = "cd \"$(mktemp -d)\"; rmdir \"$PWD\"; exec \"$@\"";
    for caller in [
        &["env", &*path][..],
        &["env", "-i", &path],
        &["env", "--unset=HOME", "TMPDIR=/nonexistent"],
        &["sh", "-c", "umask 077; exec \"$@\"", "-"],
        &["sh", "-c", in_removed_directory, "-"],
        &["env", "LANG=de_DE.ISO-8859-1", "LANGUAGE=de"],
        &["env", "LC_ALL=xx"],
        &["env", "LANG=ja_JP.eucJP", "LC_ALL=ja_JP.eucJP"],
    ] {
        for init in ["systemd", "stub", "none"] {
            let seen =
                Caller::of(caller).output_of(&[&format!("--init={init}")], PRINT_ENVIRONMENT);
            assert_eq!(seen, usual, "{caller:?} --init={init}");
        }
    }
}

#[test]
fn scripts_find_programs_outside_the_path_of_cron() {
    let exec = sh("command -v nspawn-exec").expect(0).out();
    let checker = sh("command -v check-host").expect(0).out();
    let image_script = sh("command -v nspawn-image").expect(0).out();
    // The scripts and programs are installed in one directory.
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
        PRINT_ENVIRONMENT,
    ]);
    sh(&format!("rm -r {place}")).expect(0);
    let _ = done.expect(3);
    let cron = Caller::of(&["env", "-i", &format!("PATH=/usr/bin:/bin:{}", programs())]);
    let checked = cron.call(&[checker.trim_end(), "--no-boot"]);
    checked.expect_out("ok    all programs");
    let _ = cron.call(&[image_script.trim_end(), "list"]).expect(0);
}

/// Tests the options of `systemd.exec(5)` that give the caller a mount namespace of its own.
#[test]
fn layer_size_holds_for_callers_in_private_mount_namespaces() {
    for properties in ["PrivateTmp=yes", "ProtectHome=yes ProtectSystem=full"] {
        for init in ["systemd", "stub", "none"] {
            let options = [&*format!("--init={init}"), "--layer=tmpfs:64M"];
            let seen = Caller::unit(properties).output_of(&options, PRINT_SIZE);
            assert_eq!(seen.trim(), "65536", "{properties} {init}");
        }
    }
}

/// With MountFlags=private, no mount event of the host reaches the caller.
#[test]
fn layer_size_holds_for_callers_with_private_mount_propagation() {
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
        .call(&["nspawn-run", &machine.name, "sh", "-c", PRINT_SIZE])
        .expect(3);
    assert_eq!(seen.out().trim(), "65536");
}

#[test]
fn run_refuses_a_machine_whose_layer_was_unmounted() {
    let machine = Machine::with(&["--init=none", "--layer=tmpfs:64M"]);
    machine.run(["touch", "/root/file"]).expect(0);
    sh(&format!("umount /run/nspawn-ci/{}/disk", machine.name)).expect(0);
    let done = machine.run(["true"]);
    let _ = done.expect_error(125, "the layer is no longer mounted");
}

#[test]
fn hardened_callers_work_without_unneeded_privileges() {
    for properties in [
        "PrivateDevices=yes",
        "PrivateNetwork=yes RestrictAddressFamilies=AF_UNIX",
        "ProtectProc=invisible ProcSubset=pid",
        "ProtectControlGroups=yes ProtectKernelTunables=yes ProtectKernelModules=yes ProtectKernelLogs=yes",
        "NoNewPrivileges=yes RestrictNamespaces=yes RestrictRealtime=yes LockPersonality=yes",
        "SystemCallFilter=@system-service SystemCallArchitectures=native MemoryDenyWriteExecute=yes",
        "PrivateTmp=yes SystemCallFilter=@system-service",
        "CapabilityBoundingSet=~CAP_SYS_ADMIN",
        "PrivateIPC=yes ProtectHostname=yes ProtectClock=yes UMask=0077 LimitNOFILE=64",
    ] {
        for options in [
            &["--init=systemd"][..],
            &["--init=none"],
            &["--init=none", "--layer=tmpfs:64M"],
        ] {
            let _ = Caller::unit(properties).output_of(options, PRINT_ENVIRONMENT);
        }
    }
    sh("install -d -m 0700 /var/lib/nspawn-ci /var/cache/nspawn-ci").expect(0);
    let strict = "ProtectSystem=strict ReadWritePaths=/run";
    let _ = Caller::unit(&format!(
        "{strict} ReadWritePaths=/var/lib ReadWritePaths=/var/cache"
    ))
    .output_of(&[], PRINT_ENVIRONMENT);
}

#[test]
fn refusal_names_the_setting_that_restricts_the_caller() {
    for (properties, words) in [
        (
            "ProtectSystem=strict",
            " is read-only here, and machines need /run/nspawn-ci; add ReadWritePaths=",
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
            Caller::unit(properties).expect_refused(&[&format!("--init={init}")], words);
        }
    }
    Caller::of(&["sh", "-c", "ulimit -f 2048; exec \"$@\"", "-"])
        .expect_refused(&["--init=stub"], "ulimit -f unlimited");
    // PrivatePIDs= exists since systemd 257.
    if Caller::unit("PrivatePIDs=yes").call(&["true"]).code() == 0 {
        Caller::unit("PrivatePIDs=yes").expect_refused(&["--init=stub"], "set PrivatePIDs=no");
    }
}
