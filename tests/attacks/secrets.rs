//! The data of machines, and other users of the host.

use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nspawn_common::machine::processes;
use nspawn_common::shell;
use nspawn_tests::gitlab_runner::{Attempt, Job, Outcome, Runner};
use nspawn_tests::{Machine, call, finish, image, sh, wait_until};
use serde_json::json;

use crate::probe::{Place, Probe};
use crate::suite::{Control, Fixture, Suite, name};

/// Lists directories and reads files as a user.
const LOOK: &str = r#"
user=$1
shift
for path in "$@"; do
    as="setpriv --reuid=$user --regid=$user --clear-groups"
    attempt $as ls "$path/." && got_in "list $path"
    attempt $as test -f "$path" && attempt $as head -c 1 "$path" && got_in "read $path"
done
kept_out "$why"
"#;

pub fn rows(suite: &mut Suite, fixture: &Fixture) {
    suite.row(
        "state, layers and roots of machines, by another user of the host",
        || {
            let paths = fixture.attacker.paths();
            let supervisor = processes::supervisor(&paths).unwrap();
            let places = [
                paths.state_dir(),
                paths.state_file(),
                paths.layer(),
                paths.disk(),
                format!("/proc/{supervisor}/root").into(),
                format!("/proc/{supervisor}/environ").into(),
            ];
            let roots = ["/run/nspawn-ci", "/var/lib/nspawn-ci/machines"].map(String::from);
            for place in places
                .iter()
                .map(|path| path.to_string_lossy().into_owned())
                .chain(roots)
            {
                Probe::shell(LOOK, &["0", &place]).gets_in(Place::Host);
                Probe::shell(LOOK, &["65534", &place]).is_kept_out_of(Place::Host);
            }
            Control::Host
        },
    );
    suite.row(
        "a secret of nspawn-prepare --setenv, in command lines, units and the journal",
        || {
            let secret = name();
            let is_visible = observe(&secret, || {
                drop(prepare(&[&format!("--setenv=SECRET={secret}")], &secret))
            });
            assert!(
                is_visible,
                "a secret on the command line is not found, so the attack proves nothing"
            );
            let secret = name();
            let mut machine = None;
            let is_visible = observe(&secret, || {
                machine = Some(prepare(&["--setenv=SECRET"], &secret))
            });
            let machine = machine.unwrap();
            assert_eq!(
                machine.run(["printenv", "SECRET"]).expect(0).out(),
                format!("{secret}\n")
            );
            assert!(!is_visible, "the secret is in a command line");
            assert_not_logged(&secret);
            Control::Host
        },
    );
    suite.row(
        "a secret of nspawn-run --setenv, in command lines, units and the journal",
        || {
            let secret = name();
            let run = |option: &str, secret: &str| {
                let mut command = Command::new("nspawn-run");
                command.env("SECRET", secret).args([
                    option,
                    &fixture.attacker.name,
                    "sh",
                    "-c",
                    "sleep 0.3; echo ${#SECRET}",
                ]);
                let done = finish(&mut command, b"").expect(0);
                assert_eq!(done.out().trim(), secret.len().to_string());
            };
            assert!(
                observe(&secret, || run(
                    &format!("--setenv=SECRET={secret}"),
                    &secret
                )),
                "a secret on the command line is not found, so the attack proves nothing"
            );
            let secret = name();
            assert!(
                !observe(&secret, || run("--setenv=SECRET", &secret)),
                "the secret is in a command line"
            );
            assert_not_logged(&secret);
            Control::Host
        },
    );
    suite.row(
        "a variable of a GitLab job, in command lines, units and the journal",
        || {
            let secret = name();
            let job = Job::new(&image())
                .variable("SECRET", &secret)
                .script(&["sleep 0.3", "echo ${#SECRET}"]);
            let is_visible = observe(&secret, || drop(job.run().expect(&Outcome::Success)));
            assert!(!is_visible, "the secret is in a command line");
            assert_not_logged(&secret);
            Control::Absent
        },
    );
    suite.row(
        "passwords in entrypoint, command and variables of a GitLab service",
        passwords_of_services_are_hidden,
    );
    suite.row(
        "locks of images, held by another user of the host",
        locks_of_images_are_for_root,
    );
}

/// Command lines of processes in machines are not searched: the programs of a job choose them.
fn passwords_of_services_are_hidden() -> Control {
    let secrets = [name(), name(), name()];
    let [entrypoint, command, variable] = secrets.clone();
    let service = json!({
        "name": image(), "alias": "db",
        "entrypoint": ["sh", "-c", "echo $0 $1 >/dev/null; sleep 60", entrypoint],
        "command": [command], "variables": [{ "key": "PASSWORD", "value": variable }],
    });
    let runner = Runner::default().prepare_args(&["--init=stub", "--service-timeout=1s"]);
    let job = Job::new(&image()).service_of(service).script(&["true"]);
    let attempt = Attempt::prepared(&runner, &job);
    let machine = format!("{}-1", attempt.machine());
    let arguments = "cat /proc/[0-9]*/cmdline";
    let inside = call("nspawn-run", [&machine, "sh", "-c", arguments]).out();
    let user = |script: &str| sh(&as_nobody(script)).out();
    let searches = [
        "systemctl show '*' --property=ExecStart,Environment,Description; systemctl status --no-pager 'command-*'",
        "cat /run/systemd/transient/* /run/systemd/units/* 2>/dev/null",
        "grep -rs . /run/nspawn-ci /run/nspawn-image /run/systemd/nspawn",
        "for process in /proc/[0-9]*; do grep -q /payload $process/cgroup 2>/dev/null || tr '\\0' ' ' <$process/cmdline; done",
    ];
    for secret in &secrets[..2] {
        assert!(
            inside.contains(secret),
            "the service does not have {secret}: {inside}"
        );
    }
    // The control is a unit with the words of the command.
    let unit = format!("control-{}", name());
    sh(&format!(
        "systemd-run --quiet --collect --unit={unit} nspawn-run {machine} sh -c 'sleep 60; : {}'",
        secrets[0]
    ))
    .expect(0);
    let is_found = |search: &str| user(search).contains(&secrets[0]);
    let control = [is_found(searches[0]), is_found(searches[3])];
    sh(&format!("systemctl stop {unit}")).expect(0);
    assert_eq!(
        control,
        [true, true],
        "a secret in a unit is not found, so the attack proves nothing"
    );
    sh("journalctl --sync").expect(0);
    for secret in &secrets {
        for search in searches {
            let found = user(search);
            assert!(!found.contains(secret), "{search} prints {secret}");
        }
    }
    for secret in &secrets[1..] {
        assert_not_logged(secret);
    }
    attempt.cleanup().expect();
    Control::Host
}

/// Returns the shell command that runs a script as a user without privileges.
fn as_nobody(script: &str) -> String {
    let words = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "sh",
        "-c",
        script,
    ];
    shell::join(words).into_string().unwrap()
}

/// The image is in a directory that all users can open.
fn locks_of_images_are_for_root() -> Control {
    let image_name = format!("open-{}", name());
    let image_path = format!("/run/machines/{image_name}");
    sh(&format!(
        "mkdir -p /run/machines/{image_name} && mount --bind /var/lib/machines/{} {image_path}",
        image()
    ))
    .expect(0);
    let hold = as_nobody(&format!(
        "exec 9<{image_path}; flock --exclusive 9; exec sleep 60"
    ));
    let mut holder = Command::new("sh")
        .args(["-c", &format!("exec {hold}")])
        .spawn()
        .unwrap();
    wait_until("the user holds a lock", Duration::from_secs(10), || {
        sh(&format!("flock --nonblock --shared {image_path} true")).code() != 0
    });
    let machine = name();
    let options = ["--init=stub", "--name", &machine, &image_name];
    let done = call("timeout", ["20", "nspawn-prepare"].iter().chain(&options));
    holder.kill().unwrap();
    holder.wait().unwrap();
    call("nspawn-cleanup", [&machine]).expect(0);
    sh(&format!("umount {image_path} && rmdir {image_path}")).expect(0);
    done.expect(0);
    let locks = "/run/nspawn-image";
    sh(&as_nobody(&format!("ls {locks}"))).expect(2);
    // nspawn-image locks by name.
    let files = sh(&format!("ls -A {locks}")).expect(0).out();
    assert!(!files.is_empty());
    for file in files.lines() {
        let open = as_nobody(&format!("flock --nonblock {locks}/{file} true"));
        assert_ne!(sh(&open).code(), 0, "{file}");
    }
    Control::Host
}

/// Creates a machine, with the secret in the environment of nspawn-prepare.
fn prepare(options: &[&str], secret: &str) -> Machine {
    let mut command = Command::new("nspawn-prepare");
    let name = name();
    command
        .env("SECRET", secret)
        .args(["--name", &name])
        .args(options)
        .arg(image());
    finish(&mut command, b"").expect(0);
    Machine { name }
}

/// Returns whether the secret is in a command line of the host while `act` runs.
fn observe(secret: &str, act: impl FnOnce()) -> bool {
    let (secret, ended) = (secret.to_owned(), Arc::new(AtomicBool::new(false)));
    let has_ended = Arc::clone(&ended);
    let observer: JoinHandle<bool> = thread::spawn(move || {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut is_visible = false;
        while !has_ended.load(Ordering::SeqCst) && Instant::now() < deadline {
            is_visible |= is_in_command_lines(secret.as_bytes());
        }
        is_visible
    });
    act();
    ended.store(true, Ordering::SeqCst);
    observer.join().unwrap()
}

fn is_in_command_lines(secret: &[u8]) -> bool {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let mut lines = processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
    lines.any(|line| line.windows(secret.len()).any(|part| part == secret))
}

/// Checks that systemd, its files and the journal don't have the secret.
#[track_caller]
fn assert_not_logged(secret: &str) {
    let commands = [
        "systemctl show '*'",
        "systemctl cat 'nspawn-*' 'pasta-*'",
        "grep -rs . /run/systemd/transient /run/systemd/machines /run/systemd/nspawn",
        "journalctl --no-pager --all --output=export",
    ];
    for command in commands {
        // The search for the secret happens here, because the journal may record command lines.
        let output = sh(&format!("{command} 2>/dev/null; true")).out();
        assert!(!output.contains(secret), "{command} prints the secret");
    }
}
