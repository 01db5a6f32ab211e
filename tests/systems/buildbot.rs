//! Buildbot with a master and a worker, whose builds run in machines.

use std::fs;
use std::process::Command;

use nspawn_tests::{call, image, left_of, sh, wait_until};

use crate::host::{Host, SOON, recipe};

const MASTER: &str = "/var/lib/buildbot/masters/ci";
const WORKER: &str = "/var/lib/buildbot/workers/ci";
const DROP_IN: &str = "/etc/systemd/system/buildbot-worker@.service.d";
/// Name of the machine of builder 'project' on worker 'host1'.
const MACHINE: &str = "project-host1";
/// Prints the result of an SQL query on the master's database, which compresses logs.
const QUERY: &str = "
import bz2, sqlite3, sys, zlib
unpacked = {0: bytes, 1: zlib.decompress, 2: bz2.decompress}
database = sqlite3.connect(sys.argv[1])
database.create_function('unpacked', 2, lambda text, kind: unpacked[kind](text).decode())
for row in database.execute(sys.argv[2]): print(*row)
";

struct Buildbot {
    _host: Host,
}

impl Buildbot {
    fn start() -> Self {
        let buildbot = Self { _host: Host::new() };
        clear();
        make_project();
        sh(&format!("buildbot create-master {MASTER}")).expect(0);
        let config = fs::read_to_string(recipe("buildbot", "master.cfg")).unwrap();
        fs::write(
            format!("{MASTER}/master.cfg"),
            config.replace("bookworm", &image()),
        )
        .unwrap();
        sh(&format!("chown -R buildbot: {MASTER}; buildbot-worker create-worker {WORKER} 127.0.0.1 host1 password"))
            .expect(0);
        fs::create_dir_all(DROP_IN).unwrap();
        fs::copy(
            recipe("buildbot", "worker.conf"),
            format!("{DROP_IN}/nspawn-ci.conf"),
        )
        .unwrap();
        sh("systemctl daemon-reload; systemctl start buildbot@ci buildbot-worker@ci").expect(0);
        wait_until("the worker is connected", SOON, || {
            !buildbot.query("select * from connected_workers").is_empty()
        });
        buildbot
    }

    // A query of another user would create files of SQLite's beside the database, to which the
    // master could not write.
    fn query(&self, query: &str) -> String {
        let database = format!("{MASTER}/state.sqlite");
        let python = ["-u", "buildbot", "--", "python3", "-c"];
        call(
            "runuser",
            python.into_iter().chain([QUERY, &database, query]),
        )
        .expect(0)
        .out()
    }

    /// Waits until `count` builds have ended. Returns their results.
    #[track_caller]
    fn results(&self, count: usize) -> Vec<&'static str> {
        let query = "select results from builds where complete_at is not null order by id";
        wait_until("the builds have ended", SOON, || {
            self.query(query).lines().count() == count
        });
        let result = |number: &str| match number {
            "0" => "success",
            "2" => "failure",
            "5" => "retry",
            "6" => "cancelled",
            _ => panic!("a build has the result {number}:\n{}", self.master_log()),
        };
        self.query(query).lines().map(result).collect()
    }

    fn master_log(&self) -> String {
        fs::read_to_string(format!("{MASTER}/twistd.log")).unwrap()
    }

    /// Waits until the log of a build's step has these words. The log may follow the end of the
    /// build.
    #[track_caller]
    fn expect_log(&self, build: usize, step: &str, words: &str) {
        let query = format!(
            "select unpacked(content, compressed) from logchunks join logs on logs.id = logid \
             join steps on steps.id = stepid where buildid = {build} and steps.name = '{step}' order by first_line"
        );
        wait_until("the log has the words", SOON, || {
            self.query(&query).contains(words)
        });
    }
}

impl Drop for Buildbot {
    fn drop(&mut self) {
        clear();
    }
}

fn clear() {
    let _ = sh(&format!(
        "systemctl stop buildbot@ci buildbot-worker@ci; rm -rf {MASTER} {WORKER} {DROP_IN} /srv/git; \
         systemctl daemon-reload; nspawn-cleanup {MACHINE}"
    ));
}

fn make_project() {
    sh("git init --quiet --bare --initial-branch=main /srv/git/project.git && \
        git clone --quiet /srv/git/project.git /srv/git/clone && cd /srv/git/clone && git checkout -b main")
    .expect(0);
}

/// Pushes a commit whose test is `line`.
fn push(line: &str) {
    let commit = "cd /srv/git/clone && printf '#!/bin/sh\n%s\n' \"$1\" >check && chmod +x check && git add check && \
                  git -c user.name=ann -c user.email=ann@example.com commit --quiet --message \"$1\" && \
                  git push --quiet origin main";
    call("sh", ["-c", commit, "-", line]).expect(0);
}

/// Sends the change to the master.
fn announce() {
    let options = "--master=127.0.0.1:9989 --auth=change:password --who=ann --branch=main check";
    sh(&format!("buildbot sendchange {options}")).expect(0);
}

fn change(line: &str) {
    push(line);
    announce();
}

/// Returns whether the test of the current build runs.
fn runs() -> bool {
    Command::new("nspawn-run")
        .args([MACHINE, "test", "-e", "/run/up"])
        .output()
        .unwrap()
        .status
        .success()
}

#[test]
fn builds_of_buildbot_run_in_machines() {
    let buildbot = Buildbot::start();
    change("systemctl is-system-running");
    assert_eq!(buildbot.results(1), ["success"]);
    buildbot.expect_log(1, "test", "\norunning\n");
    change("exit 7");
    assert_eq!(buildbot.results(2)[1..], ["failure"]);
    buildbot.expect_log(2, "test", "program finished with exit code 7");
    assert_eq!(left_of(MACHINE), "");
    newer_change_cancels_a_build(&buildbot);
    build_of_a_killed_worker_is_retried(&buildbot);
}

fn newer_change_cancels_a_build(buildbot: &Buildbot) {
    change("touch /run/up; exec sleep 600");
    wait_until("the test runs", SOON, runs);
    change("true");
    assert_eq!(buildbot.results(4)[2..], ["cancelled", "success"]);
    buildbot.expect_log(3, "test", "nspawn-run: interrupted by SIGTERM");
    buildbot.expect_log(3, "cleanup", "program finished with exit code 0");
    assert_eq!(left_of(MACHINE), "");
}

fn build_of_a_killed_worker_is_retried(buildbot: &Buildbot) {
    change("touch /run/up; exec sleep 600");
    wait_until("the test runs", SOON, runs);
    push("test ! -e /run/up");
    sh("systemctl kill --signal=KILL buildbot-worker@ci").expect(0);
    assert_eq!(buildbot.results(5)[4..], ["retry"]);
    assert!(runs(), "the machine is gone");
    sh("systemctl start buildbot-worker@ci").expect(0);
    assert_eq!(buildbot.results(6)[5..], ["success"]);
    assert_eq!(left_of(MACHINE), "");
}
