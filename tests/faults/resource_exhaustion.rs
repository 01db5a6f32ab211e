//! The host runs out of a resource. The programs print one clear line, end with the right status,
//! and leave nothing behind.

use std::process::Command;

use nix::sys::inotify::{InitFlags, Inotify};
use nspawn_tests::{Done, call, finish, image, left_of, sh};

use crate::suite::{Suite, machine, name};

/// A small file system on a directory of the host, which is unmounted at the end of its try.
struct SmallFileSystem(&'static str);

impl SmallFileSystem {
    fn mount(directory: &'static str, size: &str) -> Self {
        sh(&format!(
            "mkdir -p -m 700 {directory} && mount -t tmpfs -o size={size},mode=700 none {directory}"
        ))
        .expect(0);
        Self(directory)
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        let _ = sh(&format!("umount {}", self.0));
    }
}

/// All inotify instances that root on this host may have.
struct AllInotifyInstances {
    _instances: Vec<Inotify>,
}

impl AllInotifyInstances {
    fn take() -> Self {
        let instances: Vec<_> =
            std::iter::from_fn(|| Inotify::init(InitFlags::IN_CLOEXEC).ok()).collect();
        assert!(instances.len() > 10, "{} instances", instances.len());
        Self {
            _instances: instances,
        }
    }
}

pub fn rows(suite: &mut Suite) {
    let tries = suite.times(1, 5);
    suite.row("no space for the layer", tries, |_| {
        let name = name();
        let _small = SmallFileSystem::mount("/var/lib/nspawn-ci/machines", "64k");
        call("nspawn-prepare", ["--name", &name, &image()]).expect_error(1, "can't create a layer");
        assert_eq!(left_of(&name), "");
    });
    suite.row("no space for the state", tries, |_| {
        let name = name();
        let _small = SmallFileSystem::mount("/run/nspawn-ci", "4k");
        sh("head -c 4096 /dev/zero >/run/nspawn-ci/full").expect(0);
        call("nspawn-prepare", ["--name", &name, &image()])
            .expect_error(1, "/run, which holds the state of machines, is full");
        sh("rm /run/nspawn-ci/full").expect(0);
        assert_eq!(left_of(&name), "");
    });
    suite.row("no space in the layer under a command", tries, |_| {
        let _small = SmallFileSystem::mount("/var/lib/nspawn-ci/machines", "64m");
        let machine = machine(&[]);
        let done = machine.sh("head -c 100M /dev/zero >/root/big").expect(1);
        done.expect_err("No space left");
        machine.sh("rm /root/big; echo more >/root/small").expect(0);
        call("nspawn-cleanup", [&machine.name]).expect(0);
    });
    // 3 are too few for the start of a program, and 30 are enough for all of its work.
    suite.row(
        "nspawn-prepare with a limit of 3 to 30 open files",
        tries,
        |_| {
            for most in 3..=30 {
                let name = name();
                let done =
                    run_with_open_files(most, &["nspawn-prepare", "--name", &name, &image()]);
                if done.code() == 0 {
                    call("nspawn-cleanup", [&name]).expect(0);
                } else {
                    assert_clear_error(done, 1);
                }
                assert_eq!(left_of(&name), "", "with a limit of {most} open files");
            }
        },
    );
    suite.row(
        "nspawn-run with a limit of 3 to 30 open files",
        tries,
        |_| {
            let machine = machine(&[]);
            for most in 3..=30 {
                let done =
                    run_with_open_files(most, &["nspawn-run", &machine.name, "sh", "-c", "exit 7"]);
                if done.code() != 7 {
                    assert_clear_error(done, 125);
                }
            }
        },
    );
    suite.row(
        "nspawn-cleanup with a limit of 3 to 30 open files",
        tries,
        |_| {
            for most in 3..=30 {
                let machine = machine(&[]);
                let done = run_with_open_files(most, &["nspawn-cleanup", &machine.name]);
                if done.code() == 0 {
                    assert_eq!(
                        left_of(&machine.name),
                        "",
                        "with a limit of {most} open files"
                    );
                } else {
                    assert_clear_error(done, 1);
                }
            }
        },
    );
    suite.row(
        "no inotify instances of root: machines have their own",
        tries,
        |_| {
            let name = name();
            let instances = AllInotifyInstances::take();
            call("nspawn-prepare", ["--name", &name, &image()]).expect(0);
            call("nspawn-run", [&name, "true"]).expect(0);
            call("nspawn-cleanup", [&name]).expect(0);
            drop(instances);
            assert_eq!(left_of(&name), "");
        },
    );
    suite.row(
        "no inotify instances for a machine that uses root's: the error names the sysctl to set",
        tries,
        |_| {
            let name = name();
            let instances = AllInotifyInstances::take();
            let done = call(
                "nspawn-prepare",
                ["--name", &name, "--private-users=no", &image()],
            );
            drop(instances);
            done.expect_error(1, "sysctl -w fs.inotify.max_user_instances=");
            assert_eq!(left_of(&name), "");
        },
    );
}

/// Runs a command with a limit for its open files.
fn run_with_open_files(most: u32, command: &[&str]) -> Done {
    finish(
        Command::new("prlimit")
            .arg(format!("--nofile={most}"))
            .args(command),
        b"",
    )
}

/// Checks the error of a program, unless the limit is too low even for the start of the program.
fn assert_clear_error(done: Done, code: i32) {
    if !done.err().starts_with("prlimit: ") {
        done.expect_error(code, "");
    }
}
