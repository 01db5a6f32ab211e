//! Standby machines: prepare takes one over if its options match, and the pool is refilled.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nspawn_tests::sequencer::{Job, Outcome, Runner};
use nspawn_tests::{Machine, call, image, left_of, sh, wait_until};

/// Time limit for a refill of a pool.
const REFILL: Duration = Duration::from_secs(60);

/// A standby pool of a separate image, which is deleted at the end of the test.
struct Pool {
    image: String,
    options: Vec<&'static str>,
}

impl Pool {
    fn new(name: &str, count: u32, options: &[&'static str]) -> Self {
        let tree = image();
        let image = format!("{name}-{}", std::process::id());
        symlink(tree, format!("/var/lib/machines/{image}")).unwrap();
        let pool = Self {
            image,
            options: options.to_vec(),
        };
        pool.resize(count);
        pool
    }

    fn resize(&self, count: u32) {
        let count = format!("--standby={count}");
        call(
            "nspawn-prepare",
            [&*count].iter().chain(&self.options).chain(&[&*self.image]),
        )
        .expect(0);
    }

    /// Returns the names of the machines that can be taken over.
    fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        for entry in fs::read_dir("/run/nspawn-ci").unwrap() {
            let directory = entry.unwrap().path();
            let mark = fs::read_to_string(directory.join("standby")).unwrap_or_default();
            if mark.ends_with(&format!("/{}", self.image))
                && directory.join("specification").exists()
            {
                names.push(directory.file_name().unwrap().to_str().unwrap().to_owned());
            }
        }
        names
    }

    /// Waits until `count` machines can be taken over.
    fn wait_for(&self, count: usize) {
        wait_until(&format!("{count} machines stand by"), REFILL, || {
            self.names().len() == count
        });
    }

    fn prepare(&self, options: &[&str]) -> Machine {
        let all: Vec<_> = self.options.iter().chain(options).copied().collect();
        Machine::of(&self.image, &all)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.resize(0);
        let _ = fs::remove_file(format!("/var/lib/machines/{}", self.image));
    }
}

/// Returns the name that the machine had in its pool, if it comes from one.
fn origin(machine: &Machine) -> Option<String> {
    let link = fs::read_link(format!("/run/nspawn-ci/{}/origin", machine.name)).ok()?;
    Some(link.to_str().unwrap().to_owned())
}

/// Waits until the machine is removed. Prints its files, its unit and the journal if it is not.
fn wait_until_removed(name: &str) {
    let wait = sh(&format!(
        "timeout 60 sh -c 'while test -e /run/nspawn-ci/{name}; do sleep 0.05; done'"
    ));
    let state = format!(
        "ls -l /run/nspawn-ci/{name}; systemctl status --no-pager nspawn-{name}; journalctl --since=-90s --no-pager \
         --identifier=nspawn-prepare; journalctl --since=-90s --no-pager --grep='Refill of a standby pool'"
    );
    assert!(
        wait.code() == 0,
        "{name} is still there: {}",
        sh(&state).describe()
    );
}

#[test]
fn machine_after_takeover_is_like_any_other() {
    let pool = Pool::new("alike", 1, &["--nesting"]);
    let before = pool.names();
    let name = format!("taken-{}", std::process::id());
    let machine = pool.prepare(&["--name", &name, "--setenv=GREETING=hello"]);
    assert_eq!(
        (&machine.name, origin(&machine)),
        (&name, Some(before[0].clone()))
    );
    let seen = machine.sh(
        "hostname; uname -n; systemctl is-system-running; echo $GREETING; ip route | grep -c default",
    );
    assert_eq!(
        seen.expect(0).out(),
        format!("{name}\n{name}\nrunning\nhello\n1\n")
    );
    // The host's own tools.
    assert!(call("machinectl", ["list"]).out().contains(&name));
    assert!(!call("machinectl", ["list"]).out().contains(&before[0]));
    let status = call("machinectl", ["status", "--no-pager", &name]).expect(0);
    assert!(
        status
            .out()
            .contains(&format!("Unit: nspawn-{}.service", before[0])),
        "{}",
        status.describe()
    );
    let option = format!("--machine={name}");
    let hostname = call(
        "systemd-run",
        ["--quiet", "--wait", "--pipe", &option, "hostname"],
    )
    .expect(0);
    assert_eq!(hostname.out(), format!("{name}\n"));
    let shell = format!("machinectl --quiet shell {name} /bin/sh -c 'echo shell in $(hostname)'");
    let done = call(
        "script",
        ["--quiet", "--return", "--command", &shell, "/dev/null"],
    )
    .expect(0);
    assert!(
        done.out().contains(&format!("shell in {name}")),
        "{}",
        done.describe()
    );

    pool.wait_for(1);
    assert_ne!(pool.names(), before);
    call("nspawn-cleanup", ["--stale"]).expect(0);
    // Its first name is nobody's.
    call("nspawn-cleanup", [&before[0]]).expect(0);
    call("nspawn-run", [&before[0], "true"]).expect_error(125, "no machine");
    // As it looks to a cleanup that has lost a race for it.
    let late = format!("/run/nspawn-ci/{}", before[0]);
    for cleanup in [&*before[0], "--stale"] {
        sh(&format!("mkdir {late} && touch {late}/lock")).expect(0);
        call("nspawn-cleanup", [cleanup]).expect(0);
        assert!(!fs::exists(&late).unwrap());
    }
    machine.run(["true"]).expect(0);
    machine
        .sh("systemctl poweroff --force --force 2>/dev/null; sleep 60")
        .expect_error(125, "it was shut down");
    call("nspawn-cleanup", [&name]).expect(0);
    assert_eq!(
        (left_of(&name), left_of(&before[0])),
        (String::new(), String::new())
    );
    assert!(!call("machinectl", ["list"]).out().contains(&name));
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
        call("nspawn-cleanup", ["--stale"]).expect(0);
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
    assert!(
        report
            .log()
            .contains(&format!("running\n{}\n", report.machine)),
        "{}",
        report.describe()
    );
    let message = format!(
        "machine {} of image {} ({}) is ready",
        report.machine,
        pool.image,
        image()
    );
    assert!(report.log().contains(&message), "{}", report.describe());
    pool.wait_for(1);
    assert_ne!(pool.names(), before);
    assert_eq!(left_of(&report.machine), "");
}

#[test]
fn machine_with_other_options_is_not_taken_over() {
    let pool = Pool::new("other", 1, &["--network=none"]);
    let shown = std::env::temp_dir().join(format!("e2e-standby-{}", std::process::id()));
    let bind = format!("--bind-ro={}:/mnt", shown.display());
    fs::create_dir_all(&shown).unwrap();
    for options in [
        &["--network=nat"][..],
        &["--property=LimitNOFILE=5000"],
        &["--layer=tmpfs"],
        &["--layer-size=1G"],
        &["--init=stub"],
        &["--private-users=no"],
        &["--drop-capability=CAP_MKNOD"],
        &["--no-new-privileges"],
        &["--mask=cron.service"],
        &["--property=RuntimeMaxSec=1h"],
        &[&bind],
    ] {
        let machine = pool.prepare(options);
        assert_eq!(origin(&machine), None, "{options:?}");
        machine.run(["true"]).expect(0);
    }
    fs::remove_dir(&shown).unwrap();
    assert!(origin(&pool.prepare(&["--timeout=100s", "--keep=failure", "--verbose"])).is_some());
}

#[test]
fn machine_is_replaced_after_its_bound_directory_changes() {
    let shown = "/run/e2e-standby-shown";
    fs::create_dir_all(shown).unwrap();
    let pool = Pool::new(
        "changed",
        1,
        &["--network=none", "--bind-ro=/run/e2e-standby-shown:/mnt"],
    );
    let before = pool.names();
    // Replace the directory by another one of the same name.
    fs::rename(shown, format!("{shown}.old")).unwrap();
    fs::create_dir(shown).unwrap();
    let machine = pool.prepare(&[]);
    assert_eq!(origin(&machine), None);
    wait_until_removed(&before[0]);
    pool.wait_for(1);
    assert!(origin(&pool.prepare(&[])).is_some());
    // Another tree.
    let link = format!("/var/lib/machines/{}", pool.image);
    sh(&format!(
        "mkdir {link}.tree && cp --archive {link}/. {link}.tree && ln -sfn {link}.tree {link}"
    ))
    .expect(0);
    let machine = pool.prepare(&[]);
    let taken = origin(&machine);
    sh(&format!("rm -rf {shown} {shown}.old")).expect(0);
    drop((machine, pool));
    sh(&format!("rm -rf {link}.tree")).expect(0);
    assert_eq!(taken, None);
}

#[test]
fn machine_is_taken_over_after_a_bound_file_changes_its_content() {
    let file = "/run/e2e-standby-file";
    fs::write(file, "one").unwrap();
    let pool = Pool::new(
        "file",
        1,
        &[
            "--network=none",
            "--init=stub",
            "--bind-ro=/run/e2e-standby-file:/mnt/file",
        ],
    );
    fs::write(file, "two").unwrap();
    let machine = pool.prepare(&[]);
    assert!(origin(&machine).is_some());
    assert_eq!(machine.run(["cat", "/mnt/file"]).expect(0).out(), "two");
    drop((machine, pool));
    fs::remove_file(file).unwrap();
}

#[test]
fn refill_uses_the_variables_of_the_first_caller() {
    let tree = image();
    let image = format!("variable-{}", std::process::id());
    symlink(tree, format!("/var/lib/machines/{image}")).unwrap();
    let options = ["--network=none", "--init=stub", "--setenv=STANDBY_GIVEN"];
    let call = |more: &str| {
        let mut command = std::process::Command::new("nspawn-prepare");
        command
            .args(options)
            .args([more, &image])
            .env("STANDBY_GIVEN", "hello");
        nspawn_tests::finish(&mut command, b"").expect(0)
    };
    call("--standby=1");
    // The pool is deleted at the end, by a caller in another directory and with another value.
    let pool = Pool {
        image: image.clone(),
        options: options.to_vec(),
    };
    let machine = Machine {
        name: call("--verbose").out().trim_end().to_owned(),
    };
    assert!(origin(&machine).is_some());
    assert_eq!(
        machine.run(["printenv", "STANDBY_GIVEN"]).expect(0).out(),
        "hello\n"
    );
    pool.wait_for(1);
    let mut command = std::process::Command::new("nspawn-prepare");
    command
        .args(options)
        .args(["--standby=0", &image])
        .env("STANDBY_GIVEN", "other")
        .current_dir("/");
    nspawn_tests::finish(&mut command, b"").expect(0);
    assert_eq!(pool.names().len(), 0);
    std::mem::forget(pool);
    fs::remove_file(format!("/var/lib/machines/{image}")).unwrap();
}

#[test]
fn frozen_machine_is_replaced() {
    let pool = Pool::new("frozen", 1, &["--network=none"]);
    let before = pool.names();
    sh(&format!("systemctl freeze nspawn-{}.service", before[0])).expect(0);
    let mut machine = pool.prepare(&[]);
    // A prepare skips a standby machine that another process has locked for long.
    while fs::exists(format!("/run/nspawn-ci/{}/specification", before[0])).unwrap() {
        machine = pool.prepare(&[]);
    }
    assert_eq!(origin(&machine), None);
    machine.run(["true"]).expect(0);
    wait_until_removed(&before[0]);
    pool.wait_for(1);
    assert_eq!(left_of(&before[0]), "");
}

/// nspawn-cleanup --stale locks each machine while it checks it.
#[test]
fn locked_machine_is_taken_over_once_unlocked() {
    let pool = Pool::new("looked", 1, &["--network=none", "--init=stub"]);
    let path = format!("/run/nspawn-ci/{}/lock", pool.names()[0]);
    let held = Flock::lock(fs::File::open(&path).unwrap(), FlockArg::LockExclusive).unwrap();
    let opened = Inotify::init(InitFlags::IN_CLOEXEC).unwrap();
    opened.add_watch(&*path, AddWatchFlags::IN_OPEN).unwrap();
    let machine = std::thread::scope(|scope| {
        let taker = scope.spawn(|| pool.prepare(&[]));
        opened.read_events().unwrap();
        std::thread::sleep(Duration::from_millis(30));
        drop(held);
        taker.join().unwrap()
    });
    assert!(origin(&machine).is_some());
}

#[test]
fn each_machine_is_taken_over_once() {
    let pool = Pool::new("once", 2, &["--network=none"]);
    let machines: Vec<Machine> = std::thread::scope(|scope| {
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
fn dead_machine_is_replaced() {
    let pool = Pool::new("dead", 1, &["--init=stub", "--layer=tmpfs"]);
    let before = pool.names();
    sh(&format!(
        "systemctl kill --signal=KILL nspawn-{}.service",
        before[0]
    ))
    .expect(0);
    let machine = pool.prepare(&[]);
    assert_ne!(origin(&machine).as_ref(), before.first());
    machine.run(["true"]).expect(0);
    wait_until_removed(&before[0]);
    pool.wait_for(1);
    assert_eq!(left_of(&before[0]), "");
}

#[test]
fn pool_has_the_size_of_the_last_request() {
    let pool = Pool::new("count", 3, &["--network=none", "--init=stub"]);
    assert_eq!(pool.names().len(), 3);
    pool.resize(1);
    assert_eq!(pool.names().len(), 1);
    pool.resize(2);
    assert_eq!(pool.names().len(), 2);
    let names = pool.names();
    pool.resize(0);
    assert_eq!(
        (
            pool.names().len(),
            names.iter().map(|name| left_of(name)).collect::<String>()
        ),
        (0, String::new())
    );
    // The pool is deleted. A refill would start a second after a machine is taken over.
    let recorded = sh("cat /run/nspawn-ci/.standby/*").out();
    assert!(!recorded.contains(&pool.image), "{recorded}");
    drop(pool.prepare(&[]));
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(pool.names().len(), 0);
}

#[test]
fn standby_machines_can_not_be_used_by_name() {
    let pool = Pool::new("unused", 1, &["--network=none", "--init=stub"]);
    let names = pool.names();
    call("nspawn-run", [&*names[0], "true"]).expect_error(125, "stands by");
    call("nspawn-prepare", ["--name", &names[0], &image()])
        .expect_error(1, "a name for machines that stand by");
    assert_eq!(pool.names(), names);
    // Standby machines do not count for --max-machines.
    pool.prepare(&["--max-machines=1000"])
        .run(["true"])
        .expect(0);
}

#[test]
fn unsuitable_options_are_refused() {
    let refused = |options: &[&str], words: &str| {
        call("nspawn-prepare", [&["--standby=1"], options].concat()).expect_error(1, words);
    };
    let image = image();
    refused(&[], "no image is named");
    refused(&["--image", &image], "names of images");
    refused(&["--init=none", &image], "nothing to start ahead");
    refused(
        &["--property=RuntimeMaxSec=1h", &image],
        "would count while the machine stands by",
    );
    refused(
        &["--name=x", &image],
        "those who take the machines name them",
    );
    refused(&["no-such-image"], "no image");
    call("nspawn-prepare", [&*image, &image]).expect_error(1, "only --standby takes several");
    assert!(
        fs::read_dir("/run/nspawn-ci/.standby").map_or(true, |pools| {
            pools
                .filter(|pool| {
                    fs::read_to_string(pool.as_ref().unwrap().path())
                        .unwrap()
                        .contains("RuntimeMaxSec")
                })
                .count()
                == 0
        })
    );
}
