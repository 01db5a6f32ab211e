//! Many programs run at the same time.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nspawn_common::machine::paths::SLICE_CGROUP;
use nspawn_tests::{call, finish, first_line, left_of};

use crate::suite::{Suite, name, prefix, prepare};

pub fn rows(suite: &mut Suite) {
    let rounds = suite.times(2, 20);
    suite.row(
        &format!("ten processes make and remove a machine of one name, {rounds} rounds"),
        1,
        |_| {
            let name = name();
            in_parallel(10, |_| {
                for _ in 0..rounds {
                    finish(prepare(&name).arg("--replace"), b"").expect(0);
                    call("nspawn-cleanup", [&name]).expect(0);
                }
            });
            assert_eq!(left_of(&name), "");
        },
    );
    let (count, most) = (suite.times(12, 60), suite.times(3, 8));
    suite.row(
        &format!("{count} nspawn-prepare at once with --max-machines={most}"),
        1,
        |_| {
            let ended = AtomicBool::new(false);
            thread::scope(|scope| {
                let counter = scope.spawn(|| count_running(&ended));
                in_parallel(count, |_| {
                    let name = name();
                    let limits = [
                        format!("--max-machines={most}"),
                        "--timeout=10min".to_owned(),
                    ];
                    finish(prepare(&name).args(limits), b"").expect(0);
                    call("nspawn-run", [&*name, "true"]).expect(0);
                    call("nspawn-cleanup", [&name]).expect(0);
                });
                ended.store(true, Ordering::Relaxed);
                let counted = counter.join().unwrap();
                assert!(
                    (1..=most as usize).contains(&counted),
                    "{counted} machines run at once"
                );
            });
        },
    );
    suite.row(
        "a waiting nspawn-prepare goes on when a machine dies",
        suite.times(1, 10),
        |_| {
            let (first, second) = (name(), name());
            finish(&mut prepare(&first), b"").expect(0);
            let mut waiting = Waiting::start(&second);
            nspawn_tests::sh(&format!(
                "systemctl kill --signal=KILL nspawn-{first}.service"
            ))
            .expect(0);
            assert!(waiting.0.wait().unwrap().success());
            call("nspawn-cleanup", [first, second]).expect(0);
        },
    );
    suite.row(
        "two waiting nspawn-prepare end by SIGTERM",
        suite.times(1, 10),
        |_| {
            let first = name();
            finish(&mut prepare(&first), b"").expect(0);
            let mut both = [Waiting::start(&name()), Waiting::start(&name())];
            for waiting in &mut both {
                nspawn_tests::sh(&format!("kill -TERM {}", waiting.0.id())).expect(0);
                assert_eq!(waiting.0.wait().unwrap().signal(), Some(15));
            }
            call("nspawn-cleanup", [first]).expect(0);
        },
    );
}

/// An `nspawn-prepare` that has printed that it waits.
struct Waiting(Child);

impl Waiting {
    fn start(name: &str) -> Self {
        let mut command = prepare(name);
        let mut child = command
            .arg("--max-machines=1")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let line = first_line(child.stderr.take());
        assert!(
            line.contains("waiting ") && line.contains("(--max-machines=1)"),
            "{line}"
        );
        Self(child)
    }
}

fn in_parallel(count: u32, work: impl Fn(u32) + Sync) {
    let work = &work;
    thread::scope(|scope| {
        let workers: Vec<_> = (0..count)
            .map(|number| scope.spawn(move || work(number)))
            .collect();
        workers
            .into_iter()
            .for_each(|worker| worker.join().unwrap());
    });
}

/// Returns the largest number of machines that run at the same time, until `ended` is set.
fn count_running(ended: &AtomicBool) -> usize {
    let mut most = 0;
    while !ended.load(Ordering::Relaxed) {
        let units = fs::read_dir(SLICE_CGROUP).into_iter().flatten().flatten();
        let ours = units.filter(|unit| {
            unit.file_name()
                .to_string_lossy()
                .starts_with(&format!("nspawn-{}", prefix()))
        });
        most = most.max(ours.filter(|unit| is_populated(&unit.path())).count());
        thread::sleep(Duration::from_millis(10));
    }
    most
}

fn is_populated(cgroup: &Path) -> bool {
    fs::read_to_string(cgroup.join("cgroup.events"))
        .is_ok_and(|events| events.contains("populated 1"))
}
