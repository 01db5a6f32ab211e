//! These programs are killed at any moment. What they leave is `nspawn-cleanup --stale`'s, and keeps
//! nobody from making a machine of the same name.

use std::process::{Command, Stdio};
use std::time::Duration;

use nspawn_tests::{call, image, left_of, random, sh};

use crate::suite::{Suite, name, prepare};

const VICTIMS: [&str; 10] = [
    "nspawn-prepare",
    "nspawn-run",
    "nspawn-cleanup",
    "systemd-nspawn",
    "nspawn-cleanup --stale",
    "nspawn-run of a machine without an init",
    "nspawn-run --image",
    "nspawn-prepare that takes a machine",
    "nspawn-prepare --standby",
    "nspawn-prepare of a job with services",
];

pub fn rows(suite: &mut Suite) {
    let seed: u64 = std::env::var("FAULT_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or(7);
    let names = [name(), name(), name()];
    for (place, victim) in (0..).zip(VICTIMS) {
        suite.row(
            &format!("SIGKILL at a random moment: {victim}"),
            suite.times(6, 60),
            |number| {
                let numbers = random(3, seed + u64::from(number) * 10 + place);
                let name = &*names[usize::from(numbers[0]) % names.len()];
                let moment = f64::from(numbers[1]) / 256.0;
                match place {
                    0 => kill_prepare(name, moment),
                    1 => kill_run(name, moment),
                    2 => kill_cleanup(name, moment, &[name]),
                    3 => kill_nspawn(name),
                    4 => kill_stale(name, moment),
                    5 => kill_start(name, moment),
                    6 => kill_own(name, moment),
                    7 => kill_take(name, moment),
                    8 => kill_fill(moment),
                    _ => kill_job(moment),
                }
            },
        );
    }
}

// A share of how long it usually takes at most.
fn after(share: f64, milliseconds: f64) -> Duration {
    Duration::from_secs_f64(share * milliseconds / 1000.0)
}

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

fn stale_takes(name: &str) {
    call("nspawn-cleanup", ["--stale"]).expect(0);
    assert_eq!(left_of(name), "");
}

fn make(name: &str) {
    nspawn_tests::finish(&mut prepare(name), b"").expect(0);
}

fn kill_prepare(name: &str, moment: f64) {
    if start_and_kill(&mut prepare(name), after(moment, 300.0)) {
        // It was faster: then the machine is somebody's.
        call("nspawn-cleanup", ["--stale"]).expect(0);
        call("nspawn-run", [name, "true"]).expect(0);
        call("nspawn-cleanup", [name]).expect(0);
    }
    stale_takes(name);
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
    ends_soon(name);
    call("nspawn-cleanup", [name]).expect(0);
}

// The agent takes a moment to end what belongs to nobody.
fn ends_soon(name: &str) {
    let gone =
        "for i in $(seq 100); do pgrep -x sleep >/dev/null || exit 0; sleep 0.05; done; exit 1";
    call("nspawn-run", [name, "sh", "-c", gone]).expect(0);
}

fn kill_cleanup(name: &str, moment: f64, arguments: &[&str]) {
    make(name);
    sh(&format!(
        "nspawn-run {name} sh -c 'mkdir /root/d; cd /root/d; seq 2000 | xargs touch'"
    ))
    .expect(0);
    start_and_kill(
        Command::new("nspawn-cleanup").args(arguments),
        after(moment, 150.0),
    );
    call("nspawn-cleanup", ["--stale"]).expect(0);
    // Before it had begun nothing was stale.
    if !left_of(name).is_empty() {
        call("nspawn-run", [name, "true"]).expect(0);
        call("nspawn-cleanup", [name]).expect(0);
    }
    assert_eq!(left_of(name), "");
}

fn kill_nspawn(name: &str) {
    make(name);
    sh(&format!(
        "pkill -KILL -f '^systemd-nspawn .*--machine={name} '"
    ))
    .expect(0);
    wait_for_the_end(name);
    stale_takes(name);
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
    wait_for_the_end(name);
    stale_takes(name);
}

// Whatever is half started then, the next run is as any other.
fn kill_start(name: &str, moment: f64) {
    nspawn_tests::finish(prepare(name).arg("--init=none"), b"").expect(0);
    call("nspawn-run", [name, "touch", "/root/kept"]).expect(0);
    start_and_kill(
        Command::new("nspawn-run").args([name, "sleep", "600"]),
        after(moment, 400.0),
    );
    call("nspawn-cleanup", ["--stale"]).expect(0);
    ends_soon(name);
    call("nspawn-run", [name, "test", "-e", "/root/kept"]).expect(0);
    call("nspawn-cleanup", [name]).expect(0);
    assert_eq!(left_of(name), "");
}

fn kill_own(name: &str, moment: f64) {
    let mut command = Command::new("nspawn-run");
    command
        .env("NSPAWN_NAME", name)
        .args(["--image", &image(), "sleep", "600"]);
    start_and_kill(&mut command, after(moment, 400.0));
    stale_takes(name);
}

fn keep_ready(count: u32) -> Command {
    let mut command = Command::new("nspawn-prepare");
    command.args([format!("--standby={count}"), image()]);
    command
}

// What stood by belongs to nobody then, by one name or the other, or still stands by.
fn kill_take(name: &str, moment: f64) {
    nspawn_tests::finish(&mut keep_ready(1), b"").expect(0);
    if start_and_kill(&mut prepare(name), after(moment, 25.0)) {
        call("nspawn-run", [name, "true"]).expect(0);
        call("nspawn-cleanup", [name]).expect(0);
    }
    stale_takes(name);
    make(name);
    call("nspawn-run", [name, "true"]).expect(0);
    call("nspawn-cleanup", [name]).expect(0);
    none_stands_by();
}

fn kill_fill(moment: f64) {
    start_and_kill(&mut keep_ready(2), after(moment, 600.0));
    call("nspawn-cleanup", ["--stale"]).expect(0);
    nspawn_tests::finish(&mut keep_ready(2), b"").expect(0);
    none_stands_by();
}

// Its services end with it, whoever makes them.
fn kill_job(moment: f64) {
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
    // What they were about to start is on its way for a moment.
    sh("timeout 10 sh -c 'while pgrep -f \"[n]spawn-prepare --internal=service\"; do sleep 0.05; done' >/dev/null").expect(0);
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
    stale_takes(&job);
    std::fs::remove_file(response).unwrap();
}

fn none_stands_by() {
    nspawn_tests::finish(&mut keep_ready(0), b"").expect(0);
    // One that is being made is removed by who makes it.
    sh("timeout 20 sh -c 'while pgrep -f [n]spawn-prepare.--internal=refill; do sleep 0.05; done' >/dev/null").expect(0);
    stale_takes("standby-");
}

// systemd takes a moment to see it.
fn wait_for_the_end(name: &str) {
    sh(&format!(
        "timeout 10 sh -c 'while systemctl is-active --quiet nspawn-{name}; do sleep 0.02; done'"
    ))
    .expect(0);
}
