//! The cache of the filters of system calls.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::ptrace;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use nspawn_common::machine::paths::STATE_ROOT;
use nspawn_common::machine::processes;
use nspawn_common::sys::seccomp::{Program, program_of};
use nspawn_tests::{Machine, sh, wait_until};

/// Time limit of a recording.
const LIMIT: Duration = Duration::from_secs(60);

/// Returns the filters of the machine's PID 1, in the order in which they were installed.
#[track_caller]
fn filters(machine: &Machine) -> Vec<Program> {
    let leader = processes::leader(&machine.paths()).unwrap();
    let leader = Pid::from_raw(i32::try_from(leader).unwrap());
    ptrace::attach(leader).unwrap();
    waitpid(leader, None).unwrap();
    let programs = (0..).map_while(|index| program_of(leader, index).unwrap());
    let programs = programs.collect();
    ptrace::detach(leader, None).unwrap();
    programs
}

/// Returns whether systemd-nspawn of this machine has compiled filters.
#[track_caller]
fn has_compiled(machine: &Machine) -> bool {
    let supervisor = processes::supervisor(&machine.paths()).unwrap();
    let environment = fs::read(format!("/proc/{supervisor}/environ")).unwrap();
    !environment
        .split(|byte| *byte == 0)
        .any(|variable| variable == b"SYSTEMD_SECCOMP=0")
}

fn entries() -> Vec<PathBuf> {
    let directory = fs::read_dir(format!("{STATE_ROOT}/.filters"));
    let paths = directory
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    paths
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "json")
        })
        .collect()
}

/// Removes all entries. Waits for the units that still write one.
#[track_caller]
fn forget() {
    wait_until_idle();
    sh(&format!("rm -rf {STATE_ROOT}/.filters")).expect(0);
}

/// Waits until no unit records filters.
#[track_caller]
fn wait_until_idle() {
    wait_until("no filters are recorded", LIMIT, || {
        sh("! systemctl list-units --no-legend 'nspawn-ci-filters-*' | grep .")
            .status
            .success()
    });
}

#[track_caller]
fn wait_for_entry() -> PathBuf {
    wait_until("the filters are recorded", LIMIT, || entries().len() == 1);
    entries().remove(0)
}

#[test]
fn cached_filters_are_those_that_systemd_nspawn_compiles() {
    for options in [
        &["--init=systemd"][..],
        &["--init=stub"],
        &["--init=stub", "--network=host", "--nesting"],
        &[
            "--init=stub",
            "--system-call-filter=perf_event_open",
            "--layer=none",
        ],
    ] {
        forget();
        let first = Machine::with(options);
        wait_for_entry();
        let second = Machine::with(options);
        assert!(
            has_compiled(&first) && !has_compiled(&second),
            "{options:?}"
        );
        assert_eq!(filters(&first), filters(&second), "{options:?}");
        assert!(filters(&first).len() > 3);
    }
}

#[test]
fn filters_that_do_not_fit_are_compiled_again() {
    let options = ["--init=stub", "--network=none"];
    let changes: [fn(&str) -> String; 4] = [
        |entry| entry[..entry.len() / 2].to_owned(),
        |entry| entry.replacen("\"programs\":[[", "\"programs\":[[7,", 1),
        |entry| entry.replacen("systemd-nspawn\",[", "systemd-nspawn\",[1", 1),
        |_| String::new(),
    ];
    forget();
    let compiled = Machine::with(&options);
    for change in changes {
        let path = wait_for_entry();
        let entry = fs::read_to_string(&path).unwrap();
        let changed = change(&entry);
        assert_ne!(changed, entry);
        fs::write(&path, &changed).unwrap();
        let machine = Machine::with(&options);
        assert!(has_compiled(&machine), "{changed}");
        assert_eq!(filters(&machine), filters(&compiled));
        wait_until("the filters are recorded again", LIMIT, || {
            fs::read_to_string(&path).is_ok_and(|now| now == entry)
        });
        assert!(!has_compiled(&Machine::with(&options)));
    }
}

#[test]
fn killed_recording_is_repeated_after_its_time_limit() {
    let options = ["--init=stub", "--network=none"];
    forget();
    let _machine = Machine::with(&options);
    let entry = wait_for_entry();
    forget();
    let left = entry.with_extension("recording");
    fs::create_dir_all(left.join("root/usr")).unwrap();
    let _machine = Machine::with(&options);
    wait_until_idle();
    assert_eq!(entries(), [""; 0].map(PathBuf::from), "it may still run");
    sh(&format!("touch -d '2 minutes ago' {}", left.display())).expect(0);
    let _machine = Machine::with(&options);
    assert_eq!(wait_for_entry(), entry);
    assert!(!left.exists());
}

#[test]
fn filters_of_unusual_options_are_not_cached() {
    forget();
    let machine = Machine::with(&["--init=stub", "--system-call-filter=~kexec_load"]);
    assert!(has_compiled(&machine));
    wait_until_idle();
    assert_eq!(entries(), [""; 0].map(PathBuf::from));
}
