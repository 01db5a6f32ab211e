//! Takeover of a standby machine.

use std::fs;
use std::thread;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nspawn_tests::gitlab_runner::{Job, Outcome, Runner};
use nspawn_tests::{Machine, call, image, left_of, remove_stale, sh};

use super::{Pool, origin};
use crate::images::Name;

#[test]
fn machine_after_takeover_is_like_any_other() {
    let pool = Pool::new("alike", 1, &["--nesting"]);
    let first_name = pool.names().remove(0);
    let name = format!("taken-{}", std::process::id());
    let machine = pool.prepare(&["--name", &name, "--setenv=GREETING=hello"]);
    assert_eq!(
        (&machine.name, origin(&machine)),
        (&name, Some(first_name.clone()))
    );
    check_inside(&machine);
    check_systemd_tools(&machine, &first_name);
    pool.wait_for(1);
    assert_ne!(pool.names(), [&*first_name]);
    check_first_name_is_free(&first_name);
    machine.run(["true"]).expect(0);
    check_end(&machine, &first_name);
}

fn check_inside(machine: &Machine) {
    let seen = machine.sh(
        "hostname; uname -n; systemctl is-system-running; echo $GREETING; ip route | grep -c default",
    );
    assert_eq!(
        seen.expect(0).out(),
        format!("{0}\n{0}\nrunning\nhello\n1\n", machine.name)
    );
}

/// Checks that systemd's tools know the machine by its new name. Its unit keeps the first name.
fn check_systemd_tools(machine: &Machine, first_name: &str) {
    let name = &*machine.name;
    let list = call("machinectl", ["list"]).expect(0).out();
    assert!(list.contains(name) && !list.contains(first_name), "{list}");
    let status = call("machinectl", ["status", "--no-pager", name]).expect(0);
    status.expect_out(&format!("Unit: nspawn-{first_name}.service"));
    let option = format!("--machine={name}");
    let hostname = call(
        "systemd-run",
        ["--quiet", "--wait", "--pipe", &option, "hostname"],
    )
    .expect(0);
    assert_eq!(hostname.out(), format!("{name}\n"));
    machine.check_machinectl_shell();
}

/// Checks that the first name has no machine, and that cleanups of it leave the machine alone.
fn check_first_name_is_free(first_name: &str) {
    remove_stale();
    call("nspawn-cleanup", [first_name]).expect(0);
    call("nspawn-run", [first_name, "true"]).expect_error(125, "no machine");
    // A cleanup that loses a race with the takeover finds an empty directory with a lock.
    let directory = format!("/run/nspawn-ci/{first_name}");
    for cleanup in [first_name, "--stale"] {
        sh(&format!("mkdir {directory} && touch {directory}/lock")).expect(0);
        call("nspawn-cleanup", [cleanup]).expect(0);
        assert!(!fs::exists(&directory).unwrap());
    }
}

fn check_end(machine: &Machine, first_name: &str) {
    machine
        .sh("systemctl poweroff --force --force 2>/dev/null; sleep 60")
        .expect_error(125, "it was shut down");
    call("nspawn-cleanup", [&machine.name]).expect(0);
    assert_eq!(left_of(&machine.name) + &left_of(first_name), "");
    let list = call("machinectl", ["list"]).expect(0).out();
    assert!(!list.contains(&machine.name), "{list}");
}

/// The unit of such a machine has no RuntimeMaxSec=, which would count from its time in the pool.
#[test]
fn lifetime_of_a_machine_after_takeover_is_limited() {
    let pool = Pool::new("time", 1, &["--network=none", "--init=stub"]);
    let machine = pool.prepare(&[]);
    assert!(origin(&machine).is_some());
    let state = format!("/run/nspawn-ci/{}/state.json", machine.name);
    let limit = |seconds: u32| {
        let text = fs::read_to_string(&state).unwrap();
        fs::write(
            &state,
            text.replace(
                "\"lifetime_seconds\":null",
                &format!("\"lifetime_seconds\":{seconds}"),
            ),
        )
        .unwrap();
        remove_stale();
    };
    limit(1000);
    machine.run(["true"]).expect(0);
    sh(&format!(
        "sed -i 's/\"lifetime_seconds\":1000/\"lifetime_seconds\":null/' {state}"
    ))
    .expect(0);
    limit(0);
    machine.run(["true"]).expect_error(125, "no machine");
    assert_eq!(left_of(&machine.name), "");
}

#[test]
fn gitlab_job_takes_over_a_standby_machine() {
    let pool = Pool::new("job", 1, &["--network=none"]);
    let before = pool.names();
    let job = Job::new(&pool.image).script(&["systemctl is-system-running; hostname"]);
    let report = Runner::default()
        .prepare_args(&["--network=none"])
        .run(&job)
        .expect(&Outcome::Success);
    report.expect_log(&format!("running\n{}\n", report.machine));
    let message = format!(
        "machine {} of image {} ({}) is ready",
        report.machine,
        pool.image,
        image()
    );
    report.expect_log(&message);
    pool.wait_for(1);
    assert_ne!(pool.names(), before);
    assert_eq!(left_of(&report.machine), "");
}

/// nspawn-cleanup --stale locks each machine while it checks it.
#[test]
fn locked_machine_is_taken_over_once_unlocked() {
    let pool = Pool::new("looked", 1, &["--network=none", "--init=stub"]);
    let path = format!("/run/nspawn-ci/{}/lock", pool.names()[0]);
    let held = Flock::lock(fs::File::open(&path).unwrap(), FlockArg::LockExclusive).unwrap();
    let opened = Inotify::init(InitFlags::IN_CLOEXEC).unwrap();
    opened.add_watch(&*path, AddWatchFlags::IN_OPEN).unwrap();
    let machine = thread::scope(|scope| {
        let taker = scope.spawn(|| pool.prepare(&[]));
        opened.read_events().unwrap();
        thread::sleep(Duration::from_millis(30));
        drop(held);
        taker.join().unwrap()
    });
    assert!(origin(&machine).is_some());
}

#[test]
fn each_machine_is_taken_over_once() {
    let pool = Pool::new("once", 2, &["--network=none"]);
    let machines: Vec<Machine> = thread::scope(|scope| {
        let makers: Vec<_> = (0..5).map(|_| scope.spawn(|| pool.prepare(&[]))).collect();
        makers
            .into_iter()
            .map(|maker| maker.join().unwrap())
            .collect()
    });
    let mut origins: Vec<_> = machines.iter().filter_map(origin).collect();
    let count = origins.len();
    origins.sort();
    origins.dedup();
    assert!(count >= 2 && origins.len() == count, "{origins:?}");
    for machine in &machines {
        machine
            .sh("test ! -e /root/mark && touch /root/mark")
            .expect(0);
    }
    pool.wait_for(2);
    drop(machines);
    assert_eq!(
        origins
            .iter()
            .map(|origin| left_of(origin))
            .collect::<String>(),
        ""
    );
}

#[test]
fn new_name_resolves_without_nss_myhostname_after_takeover() {
    let name = Name::copy("pool-without-nss");
    name.sh("echo 'hosts: files' >$name/etc/nsswitch.conf");
    let pool = Pool {
        image: name.0.clone(),
        options: vec!["--network=none", "--init=stub"],
    };
    pool.resize(1);
    let machine = pool.prepare(&[]);
    let is_from_pool = origin(&machine).is_some();
    let done = machine.sh("getent hosts $(hostname); grep --count standby /etc/hosts");
    assert!(is_from_pool);
    assert!(done.out().starts_with("127.0.1.1 "), "{}", done.describe());
    assert!(done.out().ends_with("\n0\n"), "{}", done.describe());
}
