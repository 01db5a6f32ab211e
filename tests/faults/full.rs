//! The host runs out of something: one clear line, the right status, nothing left.

use std::process::Command;

use nix::sys::inotify::{InitFlags, Inotify};
use nspawn_tests::{Done, call, finish, image, left_of, sh};

use crate::suite::{Suite, machine, name};

/// A small file system over a directory of the host, taken away at the end of its try.
struct Small(&'static str);

impl Small {
    fn over(directory: &'static str, size: &str) -> Self {
        sh(&format!(
            "mkdir -p -m 700 {directory} && mount -t tmpfs -o size={size},mode=700 none {directory}"
        ))
        .expect(0);
        Self(directory)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = sh(&format!("umount {}", self.0));
    }
}

pub fn rows(suite: &mut Suite) {
    let tries = suite.times(1, 5);
    suite.row("no room for the layer", tries, |_| {
        let name = name();
        let _small = Small::over("/var/lib/nspawn-ci/machines", "64k");
        call("nspawn-prepare", ["--name", &name, &image()]).expect_error(1, "No space left");
        assert_eq!(left_of(&name), "");
    });
    suite.row("no room for the state", tries, |_| {
        let name = name();
        let _small = Small::over("/run/nspawn-ci", "4k");
        sh("head -c 4096 /dev/zero >/run/nspawn-ci/full").expect(0);
        call("nspawn-prepare", ["--name", &name, &image()])
            .expect_error(1, "/run, which holds the state of machines, is full");
        sh("rm /run/nspawn-ci/full").expect(0);
        assert_eq!(left_of(&name), "");
    });
    suite.row("no room in the layer under a job", tries, |_| {
        let _small = Small::over("/var/lib/nspawn-ci/machines", "64m");
        let machine = machine(&[]);
        let done = machine.sh("head -c 100M /dev/zero >/root/big").expect(1);
        assert!(done.err().contains("No space left"), "{}", done.describe());
        machine.sh("rm /root/big; echo more >/root/small").expect(0);
        call("nspawn-cleanup", [&machine.name]).expect(0);
    });
    // From not enough to start at all to enough.
    suite.row("open files: prepare with 3 to 30 of them", tries, |_| {
        for most in 3..=30 {
            let name = name();
            let done = limited(most, &["nspawn-prepare", "--name", &name, &image()]);
            if done.code() == 0 {
                call("nspawn-cleanup", [&name]).expect(0);
            } else {
                is_clear(done, 1);
            }
            assert_eq!(left_of(&name), "", "with {most} open files");
        }
    });
    suite.row("open files: run with 3 to 30 of them", tries, |_| {
        let machine = machine(&[]);
        for most in 3..=30 {
            let done = limited(most, &["nspawn-run", &machine.name, "sh", "-c", "exit 7"]);
            if done.code() != 7 {
                is_clear(done, 125);
            }
        }
    });
    suite.row("open files: cleanup with 3 to 30 of them", tries, |_| {
        for most in 3..=30 {
            let machine = machine(&[]);
            let done = limited(most, &["nspawn-cleanup", &machine.name]);
            if done.code() == 0 {
                assert_eq!(left_of(&machine.name), "", "with {most} open files");
            } else {
                is_clear(done, 1);
            }
        }
    });
    suite.row(
        "inotify instances: prepare says which sysctl to set",
        tries,
        |_| {
            let name = name();
            let taken: Vec<_> =
                std::iter::from_fn(|| Inotify::init(InitFlags::IN_CLOEXEC).ok()).collect();
            let done = call("nspawn-prepare", ["--name", &name, &image()]);
            drop(taken);
            done.expect_error(1, "sysctl -w fs.inotify.max_user_instances=");
            assert_eq!(left_of(&name), "");
        },
    );
}

fn limited(most: u32, command: &[&str]) -> Done {
    finish(
        Command::new("prlimit")
            .arg(format!("--nofile={most}"))
            .args(command),
        b"",
    )
}

// So few that not even the program can be started is not the program's to tell.
fn is_clear(done: Done, code: i32) {
    if !done.err().starts_with("prlimit: ") {
        done.expect_error(code, "");
    }
}
