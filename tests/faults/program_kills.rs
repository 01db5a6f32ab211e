//! The programs are killed at a random moment. `nspawn-cleanup --stale` removes what they leave
//! behind, and a machine of the same name can be created again.

use std::process::{Command, Stdio};
use std::time::Duration;

use nspawn_tests::{call, image, left_of, random, sh};

use crate::suite::{Suite, name, prepare};

/// A try: it gets the name of a machine, and the moment of the kill as a share of the usual
/// duration.
type Try = fn(&str, f64);

/// The killed programs.
const VICTIMS: [(&str, Try); 10] = [
    ("nspawn-prepare", kill_prepare),
    ("nspawn-run", kill_run),
    ("nspawn-cleanup", kill_cleanup),
    ("systemd-nspawn", kill_nspawn),
    ("nspawn-cleanup --stale", kill_stale),
    ("nspawn-run in a machine without an init", kill_start),
    ("nspawn-run --image", kill_run_of_image),
    (
        "nspawn-prepare that takes over a standby machine",
        kill_takeover,
    ),
    ("nspawn-prepare --standby", kill_standby),
    ("nspawn-prepare of a job with services", kill_job),
];

pub fn rows(suite: &mut Suite) {
    let seed: u64 = std::env::var("FAULT_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or(7);
    let names = [name(), name(), name()];
    for (place, (victim, attempt)) in (0..).zip(VICTIMS) {
        suite.row(
            &format!("SIGKILL at a random moment: {victim}"),
            suite.times(6, 60),
            |number| {
                let numbers = random(3, seed + u64::from(number) * 10 + place);
                let name = &*names[usize::from(numbers[0]) % names.len()];
                attempt(name, f64::from(numbers[1]) / 256.0);
            },
        );
    }
}

/// Returns a share of the time that a program usually takes at most.
fn after(share: f64, milliseconds: f64) -> Duration {
    Duration::from_secs_f64(share * milliseconds / 1000.0)
}

/// Returns whether the program ended successfully before it was killed.
fn start_and_kill(command: &mut Command, moment: Duration) -> bool {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(moment);
    let _ = child.kill();
    child.wait().unwrap().success()
}

/// Checks that `nspawn-cleanup --stale` removes a machine.
fn assert_stale_removes(name: &str) {
    call("nspawn-cleanup", ["--stale"]).expect(0);
    assert_eq!(left_of(name), "");
}

fn make(name: &str) {
    nspawn_tests::finish(&mut prepare(name), b"").expect(0);
}

fn kill_prepare(name: &str, moment: f64) {
    if start_and_kill(&mut prepare(name), after(moment, 300.0)) {
        // The program ended first, so that the machine is in use and not stale.
        call("nspawn-cleanup", ["--stale"]).expect(0);
        call("nspawn-run", [name, "true"]).expect(0);
        call("nspawn-cleanup", [name]).expect(0);
    }
    assert_stale_removes(name);
    make(name);
    call("nspawn-cleanup", [name]).expect(0);
}

fn kill_run(name: &str, moment: f64) {
    make(name);
    start_and_kill(
        Command::new("nspawn-run").args([name, "sleep", "600"]),
        after(moment, 60.0),
    );
    call("nspawn-cleanup", ["--stale"]).expect(0);
    wait_for_end_of_command(name);
    call("nspawn-cleanup", [name]).expect(0);
}

/// Waits until the agent has ended the command, whose nspawn-run is gone.
fn wait_for_end_of_command(name: &str) {
    let wait =
        "for i in $(seq 100); do pgrep -x sleep >/dev/null || exit 0; sleep 0.05; done; exit 1";
    call("nspawn-run", [name, "sh", "-c", wait]).expect(0);
}

fn kill_cleanup(name: &str, moment: f64) {
    make(name);
    sh(&format!(
        "nspawn-run {name} sh -c 'mkdir /root/d; cd /root/d; seq 2000 | xargs touch'"
    ))
    .expect(0);
    start_and_kill(
        Command::new("nspawn-cleanup").arg(name),
        after(moment, 150.0),
    );
    call("nspawn-cleanup", ["--stale"]).expect(0);
    // If the kill came before the cleanup began, the machine was not stale.
    if !left_of(name).is_empty() {
        call("nspawn-run", [name, "true"]).expect(0);
        call("nspawn-cleanup", [name]).expect(0);
    }
    assert_eq!(left_of(name), "");
}

/// Kills the supervisor of a machine, at no particular moment.
fn kill_nspawn(name: &str, _: f64) {
    make(name);
    sh(&format!(
        "pkill -KILL -f '^systemd-nspawn .*--machine={name} '"
    ))
    .expect(0);
    wait_for_end_of_unit(name);
    assert_stale_removes(name);
}

fn kill_stale(name: &str, moment: f64) {
    make(name);
    sh(&format!(
        "systemctl kill --signal=KILL nspawn-{name}.service"
    ))
    .expect(0);
    start_and_kill(
        Command::new("nspawn-cleanup").arg("--stale"),
        after(moment, 60.0),
    );
    wait_for_end_of_unit(name);
    assert_stale_removes(name);
}

/// Kills nspawn-run while it starts the machine. The next nspawn-run must work.
fn kill_start(name: &str, moment: f64) {
    nspawn_tests::finish(prepare(name).arg("--init=none"), b"").expect(0);
    call("nspawn-run", [name, "touch", "/root/kept"]).expect(0);
    start_and_kill(
        Command::new("nspawn-run").args([name, "sleep", "600"]),
        after(moment, 400.0),
    );
    call("nspawn-cleanup", ["--stale"]).expect(0);
    wait_for_end_of_command(name);
    call("nspawn-run", [name, "test", "-e", "/root/kept"]).expect(0);
    call("nspawn-cleanup", [name]).expect(0);
    assert_eq!(left_of(name), "");
}

/// Kills nspawn-run while it creates a machine of its own.
fn kill_run_of_image(name: &str, moment: f64) {
    let mut command = Command::new("nspawn-run");
    command
        .env("NSPAWN_NAME", name)
        .args(["--image", &image(), "sleep", "600"]);
    start_and_kill(&mut command, after(moment, 400.0));
    assert_stale_removes(name);
}

/// Returns the command that fills a pool with `count` machines.
fn fill_pool(count: u32) -> Command {
    let mut command = Command::new("nspawn-prepare");
    command.args([format!("--standby={count}"), image()]);
    command
}

/// Kills nspawn-prepare while it takes over a standby machine, which then is stale under its old or
/// its new name, or still in the pool.
fn kill_takeover(name: &str, moment: f64) {
    nspawn_tests::finish(&mut fill_pool(1), b"").expect(0);
    if start_and_kill(&mut prepare(name), after(moment, 25.0)) {
        call("nspawn-run", [name, "true"]).expect(0);
        call("nspawn-cleanup", [name]).expect(0);
    }
    assert_stale_removes(name);
    make(name);
    call("nspawn-run", [name, "true"]).expect(0);
    call("nspawn-cleanup", [name]).expect(0);
    empty_pool();
}

/// Kills nspawn-prepare while it fills a pool.
fn kill_standby(_: &str, moment: f64) {
    start_and_kill(&mut fill_pool(2), after(moment, 600.0));
    call("nspawn-cleanup", ["--stale"]).expect(0);
    nspawn_tests::finish(&mut fill_pool(2), b"").expect(0);
    empty_pool();
}

/// Kills nspawn-prepare while it creates the machines of a job and of its services.
fn kill_job(_: &str, moment: f64) {
    let (mut command, response) = (
        Command::new("nspawn-prepare"),
        format!("/run/faults-{}.json", std::process::id()),
    );
    let service = r#"{"name": "IMAGE", "command": ["sleep", "600"], "alias": "x"}"#
        .replace("IMAGE", &image());
    let job = format!(
        r#"{{"id": {}, "image": {{"name": "{}"}}, "services": [{service}, {service}], "job_info": {{"project_id": 1}}}}"#,
        std::process::id(),
        image()
    );
    std::fs::write(&response, job).unwrap();
    command
        .args(["--service-timeout=1s"])
        .env("CUSTOM_ENV_CI_JOB_ID", "1")
        .env("JOB_RESPONSE_FILE", &response);
    let job = format!("gitlab-{}-", std::process::id());
    if start_and_kill(&mut command, after(moment, 1800.0)) {
        call("nspawn-cleanup", ["--stale"]).expect(0);
        assert_eq!(
            sh(&format!("ls -d /run/nspawn-ci/{job}* | wc -l")).out(),
            "3\n"
        );
    }
    // The processes that create the services may run for a moment longer.
    sh("timeout 10 sh -c 'while pgrep -f \"[n]spawn-prepare --[a-z=]*service\"; do sleep 0.05; done' >/dev/null").expect(0);
    let mut cleanup = Command::new("nspawn-cleanup");
    if std::fs::exists(format!("/run/nspawn-ci/{job}811c9dc5/ready")).unwrap() {
        nspawn_tests::finish(
            cleanup
                .env("CUSTOM_ENV_CI_JOB_ID", "1")
                .env("JOB_RESPONSE_FILE", &response),
            b"",
        )
        .expect(0);
    }
    assert_stale_removes(&job);
    std::fs::remove_file(response).unwrap();
}

/// Empties the pool, and checks that its machines are gone.
fn empty_pool() {
    nspawn_tests::finish(&mut fill_pool(0), b"").expect(0);
    // A process that still creates a machine for the pool removes it itself.
    sh("timeout 20 sh -c 'while pgrep -f \"[n]spawn-prepare --[a-z=]*refill\"; do sleep 0.05; done' >/dev/null").expect(0);
    assert_stale_removes("standby-");
}

/// Waits until systemd has noticed that the unit ended.
fn wait_for_end_of_unit(name: &str) {
    sh(&format!(
        "timeout 10 sh -c 'while systemctl is-active --quiet nspawn-{name}; do sleep 0.02; done'"
    ))
    .expect(0);
}
