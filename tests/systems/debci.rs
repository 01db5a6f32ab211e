//! debci, which tests packages in machines with `autopkgtest-virt-nspawn-ci`.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use nspawn_tests::{Done, call, image, left_of, sh};

use crate::host::{Host, recipe};

const BACKEND: &str = "/usr/share/debci/backends/nspawn";
/// Directory of the tested package's sources, and of debci's records.
const DIRECTORY: &str = "/srv/debci";
const MACHINE: &str = "e2e-debci";
const UNIT: &str = "e2e-debci-worker";

const SOURCES: [(&str, &str); 3] = [
    (
        "control",
        "Source: probe\nMaintainer: Ann <ann@example.com>\n\nPackage: probe\nArchitecture: all\n",
    ),
    (
        "changelog",
        "probe (1) unstable; urgency=low\n\n  * New.\n\n -- A <a@example.com>  Thu, 01 Jan 2026 00:00:00 +0000\n",
    ),
    (
        "tests/control",
        "Test-Command: . ./check\nFeatures: test-name=check\nRestrictions: allow-stderr\nDepends:\n",
    ),
];

struct Debci {
    _host: Host,
}

impl Debci {
    fn start() -> Self {
        let debci = Self { _host: Host::new() };
        clear();
        fs::create_dir_all(BACKEND).unwrap();
        fs::copy(
            recipe("debci", "test-package"),
            format!("{BACKEND}/test-package"),
        )
        .unwrap();
        sh(&format!("chmod +x {BACKEND}/test-package")).expect(0);
        fs::create_dir_all(format!("{DIRECTORY}/probe/debian/tests")).unwrap();
        for (file, text) in SOURCES {
            fs::write(format!("{DIRECTORY}/probe/debian/{file}"), text).unwrap();
        }
        debci
    }

    /// Returns a command that tests the package, with `line` as its test. It runs in a service,
    /// which systemd can stop like a worker.
    fn test(&self, run: &str, line: &str) -> Command {
        let data = format!("{DIRECTORY}/{run}");
        fs::create_dir(&data).unwrap();
        fs::write(format!("{DIRECTORY}/probe/check"), format!("{line}\n")).unwrap();
        let mut command = Command::new("systemd-run");
        command.args([
            "--quiet",
            "--pipe",
            "--wait",
            "--collect",
            "--unit",
            UNIT,
            "--working-directory",
            DIRECTORY,
        ]);
        // debci 4 writes its records to a temporary directory.
        command.args(["--setenv", &format!("TMPDIR={data}")]);
        command.args([
            "--setenv",
            &format!("NSPAWN_NAME={MACHINE}"),
            "debci",
            "test",
            "--backend",
            "nspawn",
        ]);
        command.args(["--suite", &image(), "--data-dir", &data, "./probe"]);
        command
    }

    /// Returns the names of the files that debci has written about a run.
    fn records(&self, run: &str) -> String {
        sh(&format!("find {DIRECTORY}/{run} -type f -printf '%f\\n'"))
            .expect(0)
            .out()
    }

    /// Returns the content of such a file.
    fn record(&self, run: &str, file: &str) -> String {
        sh(&format!(
            "find {DIRECTORY}/{run} -name {file} -exec cat {{}} +"
        ))
        .expect(0)
        .out()
    }
}

impl Drop for Debci {
    fn drop(&mut self) {
        clear();
    }
}

fn clear() {
    let _ = sh(&format!(
        "systemctl stop {UNIT}; rm -rf {BACKEND} {DIRECTORY}; nspawn-cleanup {MACHINE}"
    ));
}

fn finish(command: &mut Command) -> Done {
    nspawn_tests::finish(command, b"")
}

#[test]
fn tests_of_debci_run_in_machines() {
    let debci = Debci::start();
    finish(&mut debci.test("good", "systemctl is-system-running")).expect(0);
    assert_eq!(
        (
            &*debci.record("good", "exitcode"),
            &*debci.record("good", "summary")
        ),
        ("0\n", "check                PASS\n")
    );
    finish(&mut debci.test("bad", "exit 7")).expect(0);
    assert_eq!(debci.record("bad", "exitcode"), "4\n");
    assert!(
        debci
            .record("bad", "summary")
            .contains("FAIL non-zero exit status 7"),
        "{}",
        debci.record("bad", "summary")
    );
    assert_eq!(left_of(MACHINE), "");
    stopped_worker_leaves_no_verdict(&debci);
}

fn stopped_worker_leaves_no_verdict(debci: &Debci) {
    let mut child = debci
        .test("stopped", "echo up; exec sleep 600")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "up"));
    call("systemctl", ["stop", UNIT]).expect(0);
    child.wait().unwrap();
    assert_eq!(left_of(MACHINE), "");
    // Without a verdict, another worker repeats the test.
    let files = debci.records("stopped");
    assert!(
        files.contains("testpkg-version\n") && !files.contains("exitcode"),
        "{files}"
    );
}
