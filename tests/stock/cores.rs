//! Crashes in machines, on a host whose core dumps go to systemd-coredump.

use std::fs;
use std::time::Duration;

use nspawn_tests::{Machine, finish, sh, wait_until};

/// Directory of systemd-coredump.
const CORES: &str = "/var/lib/systemd/coredump";

/// Runs the shell `script` in the machine with `secret` in its environment. SIGSEGV ends the
/// script.
fn crash(machine: &Machine, options: &[&str], secret: &str, script: &str) {
    let mut command = std::process::Command::new("nspawn-run");
    command
        .arg(format!("--setenv=SECRET={secret}"))
        .args(options)
        .args([&machine.name, "bash", "-c", script]);
    finish(&mut command, b"").expect(128 + 11);
}

fn is_on_the_host(secret: &str) -> bool {
    let pattern = format!("SECRET={secret}");
    sh(&format!(
        "journalctl --sync; journalctl --output=verbose --all | grep --quiet --text {pattern}"
    ))
    .code()
        == 0
}

fn cores() -> usize {
    fs::read_dir(CORES).map_or(0, Iterator::count)
}

fn listed() -> String {
    sh("coredumpctl --no-pager --no-legend list").out()
}

/// Ways to crash, with each limit on cores that a job may ask for.
const SCRIPTS: [&str; 5] = [
    "kill -SEGV $$",
    "ulimit -c 0; kill -SEGV $$",
    "ulimit -S -c 0; kill -SEGV $$",
    "ulimit -c unlimited; kill -SEGV $$",
    "ulimit -S -c hard; kill -SEGV $$",
];

#[test]
fn crash_leaves_nothing_on_the_host() {
    assert!(
        sh("cat /proc/sys/kernel/core_pattern")
            .expect(0)
            .out()
            .starts_with('|')
    );
    let (before, listed_before) = (cores(), listed());
    for options in [
        &["--init=stub"][..],
        &["--init=none"],
        &["--init=systemd"],
        &["--init=systemd", "--private-users=no"],
    ] {
        let machine = Machine::with(&[&["--network=none"], options].concat());
        for script in SCRIPTS {
            crash(&machine, &[], "hush-job", script);
        }
        crash(&machine, &["--uid=nobody"], "hush-job", SCRIPTS[1]);
        if options[0] == "--init=systemd" {
            for limit in [
                "",
                "--property=LimitCORE=infinity",
                "--property=LimitCORE=0",
            ] {
                let service = format!(
                    "systemd-run --quiet --wait {limit} --setenv=SECRET=hush-job sh -c 'echo >/run/ran; kill -SEGV $$$$'; rm /run/ran"
                );
                machine.sh(&service).expect(0);
            }
        }
    }
    // The core of the control comes after those of the others.
    dump_core();
    assert!(!is_on_the_host("hush-job"));
    assert_eq!(cores(), before);
    assert_eq!(listed().lines().count(), listed_before.lines().count() + 1);
}

#[test]
fn core_is_dumped_if_an_option_allows_it() {
    dump_core();
}

/// Dumps a core of a machine that may do so, waits until it is there, and deletes it.
#[track_caller]
fn dump_core() {
    let before = cores();
    let machine = Machine::with(&["--network=none", "--init=stub", "--rlimit=CORE=0:infinity"]);
    crash(
        &machine,
        &[],
        "hush-control",
        "ulimit -c unlimited; kill -SEGV $$",
    );
    wait_until("the core is there", Duration::from_secs(30), || {
        cores() > before && is_on_the_host("hush-control")
    });
    fs::read_dir(CORES)
        .unwrap()
        .for_each(|core| fs::remove_file(core.unwrap().path()).unwrap());
}

#[test]
fn last_option_sets_another_limit() {
    let machine = Machine::with(&[
        "--network=none",
        "--init=stub",
        "--rlimit=NOFILE=99:100",
        "--rlimit=NOFILE=77:88",
    ]);
    assert_eq!(
        machine.sh("ulimit -S -n; ulimit -H -n").expect(0).out(),
        "77\n88\n"
    );
}
