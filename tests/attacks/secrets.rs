//! What users of the host see of its machines.

use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nspawn_common::machine::name::MachineName;
use nspawn_common::machine::paths::MachinePaths;
use nspawn_common::machine::processes;
use nspawn_tests::sequencer::{Job, Outcome};
use nspawn_tests::{Machine, finish, image, sh};

use crate::probe::{Place, Probe};
use crate::suite::{Control, Field, Suite, name};

/// As the user `$1`.
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

pub fn rows(suite: &mut Suite, field: &Field) {
    suite.row(
        "another user of the host looks at state, layers and roots of machines",
        || {
            let paths = MachinePaths::named(&MachineName::new(&field.machine.name).unwrap());
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
            let given = observe(&secret, || {
                drop(prepare(&[&format!("--setenv=SECRET={secret}")], &secret))
            });
            assert!(
                given,
                "a secret on the command line is not seen, so it proves nothing"
            );
            let secret = name();
            let mut machine = None;
            let seen = observe(&secret, || {
                machine = Some(prepare(&["--setenv=SECRET"], &secret))
            });
            let machine = machine.unwrap();
            assert_eq!(
                machine.run(["printenv", "SECRET"]).expect(0).out(),
                format!("{secret}\n")
            );
            assert!(!seen, "seen in a command line");
            is_told_nowhere(&secret);
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
                    &field.machine.name,
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
                "it proves nothing"
            );
            let secret = name();
            assert!(
                !observe(&secret, || run("--setenv=SECRET", &secret)),
                "seen in a command line"
            );
            is_told_nowhere(&secret);
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
            let seen = observe(&secret, || drop(job.run().expect(&Outcome::Success)));
            assert!(!seen, "seen in a command line");
            is_told_nowhere(&secret);
            Control::Nowhere
        },
    );
}

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

// Whether it is in any command line meanwhile.
fn observe(secret: &str, act: impl FnOnce()) -> bool {
    let (secret, ended) = (secret.to_owned(), Arc::new(AtomicBool::new(false)));
    let until = Arc::clone(&ended);
    let observer: JoinHandle<bool> = thread::spawn(move || {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut is_seen = false;
        while !until.load(Ordering::SeqCst) && Instant::now() < deadline {
            is_seen |= is_in_command_lines(secret.as_bytes());
        }
        is_seen
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

#[track_caller]
fn is_told_nowhere(secret: &str) {
    let tellers = [
        "systemctl show '*'",
        "systemctl cat 'nspawn-*' 'pasta-*'",
        "grep -rs . /run/systemd/transient /run/systemd/machines /run/systemd/nspawn",
        "journalctl --no-pager --all --output=export",
    ];
    for teller in tellers {
        // The secret is not in this command line either.
        let told = sh(&format!("{teller} 2>/dev/null; true")).out();
        assert!(!told.contains(secret), "{teller} tells it");
    }
}
