//! Stale machines, which `--stale` removes, and kept machines, which it spares.

use std::fs;
use std::process::Command;

use nspawn_tests::sequencer::{Job, Outcome, Runner};
use nspawn_tests::{Machine, call, finish, image, left_of, sh};

/// Unit that replaces one of the image and never ends, so that the boot never ends.
const HANGING: &str = "[Unit]\nDefaultDependencies=no\nBefore=multi-user.target\n[Service]\nType=oneshot\nExecStart=/bin/sleep 600\n";

/// Lists what `nspawn-cleanup --stale` would remove.
fn stale() -> Vec<String> {
    let list = call("nspawn-cleanup", ["--stale", "--dry-run"])
        .expect(0)
        .out();
    list.lines().map(str::to_owned).collect()
}

#[test]
fn only_dead_and_half_made_machines_are_stale() {
    let machine = Machine::new();
    let (half, dead, layer) = (
        Machine::new(),
        Machine::new(),
        format!("stale-layer-{}", std::process::id()),
    );
    // This is the state after a prepare that was killed at its very end.
    fs::remove_file(format!("/run/nspawn-ci/{}/ready", half.name)).unwrap();
    sh(&format!("systemctl kill --signal=KILL nspawn-{0}; timeout 10 sh -c 'while [ -e /run/systemd/machines/{0} ]; do sleep 0.02; done'", dead.name)).expect(0);
    fs::create_dir_all(format!("/var/lib/nspawn-ci/machines/{layer}/upper")).unwrap();
    let listed = stale();
    for line in [
        format!("{}: unit, network, layer, state", half.name),
        format!("{}: layer, state", dead.name),
        format!("{layer}: layer"),
    ] {
        assert!(listed.contains(&line), "no {line:?} in {listed:?}");
    }
    assert!(
        !listed.iter().any(|line| line.contains(&machine.name)),
        "{listed:?}"
    );
    half.run(["true"]).expect(0);
    // Other processes may do the same at the same time.
    call("nspawn-cleanup", ["--stale"]).expect(0);
    for name in [&half.name, &dead.name, &layer] {
        assert_eq!(left_of(name), "");
    }
    machine.run(["true"]).expect(0);
}

#[test]
fn machine_of_another_version_is_not_stale() {
    let machine = Machine::with(&["--init=none"]);
    let state = format!("/run/nspawn-ci/{}/state.json", machine.name);
    let text = fs::read_to_string(&state).unwrap();
    fs::write(&state, text.replace("\"version\":2", "\"version\":3")).unwrap();
    call("nspawn-cleanup", ["--stale"]).expect(0);
    machine
        .run(["true"])
        .expect_error(125, "a newer version of these programs made it");
    fs::write(&state, text).unwrap();
    machine.run(["true"]).expect(0);
}

#[test]
fn standby_machines_do_not_count_as_machines() {
    let standby = |count: &str| {
        call(
            "nspawn-prepare",
            [count, "--init=stub", "--network=none", &image()],
        )
        .expect(0)
    };
    standby("--standby=1");
    let machine = Machine::with(&["--network=none", "--max-machines=1", "--timeout=20s"]);
    machine.run(["true"]).expect(0);
    standby("--standby=0");
    drop(machine);
    assert_eq!(left_of("standby-"), "");
}

#[test]
fn machine_being_made_is_not_stale() {
    let name = format!("making-{}", std::process::id());
    let mut prepare = Command::new("nspawn-prepare");
    let mut child = prepare
        .args([
            "--name",
            &name,
            "--property=ExecStartPre=/bin/sleep 1",
            &image(),
        ])
        .spawn()
        .unwrap();
    sh(&format!(
        "timeout 10 sh -c 'until [ -e /run/nspawn-ci/{name}/state.json ]; do sleep 0.02; done'"
    ))
    .expect(0);
    call("nspawn-cleanup", ["--stale"]).expect(0);
    assert!(child.wait().unwrap().success());
    call("nspawn-run", [&*name, "true"]).expect(0);
    call("nspawn-cleanup", [&name]).expect(0);
}

#[test]
fn hanging_boot_reports_pending_jobs() {
    let name = format!("hanging-{}", std::process::id());
    let unit = format!("/run/e2e-{name}.service");
    fs::write(&unit, HANGING).unwrap();
    let bind = format!("--bind-ro={unit}:/etc/systemd/system/systemd-sysctl.service");
    let prepare = |options: &[&str]| {
        call(
            "nspawn-prepare",
            [
                &["--name", &*name, &*bind, "--timeout=4s", &image()],
                options,
            ]
            .concat(),
        )
    };
    let done = prepare(&[]).expect_error(1, "did not boot within 4 s");
    for words in [
        "still waits for these jobs",
        "systemd-sysctl.service",
        "multi-user.target",
        "[  OK  ] ",
    ] {
        assert!(
            done.err().contains(words),
            "no {words:?} in {}",
            done.describe()
        );
    }
    assert_eq!(left_of(&name), "");
    let done = prepare(&["--keep=failure", "--keep-for=2min"]).expect(1);
    fs::remove_file(unit).unwrap();
    let (kept, _) = done
        .err()
        .split_once('\n')
        .map(|(line, rest)| (line.to_owned(), rest.to_owned()))
        .unwrap();
    assert!(
        kept.contains("is kept for 2 min") && kept.ends_with(&format!("nspawn-cleanup {name}")),
        "{kept}"
    );
    assert!(!stale().iter().any(|line| line.contains(&name)));
    // The command in the message shows the layer over the image.
    let layer = format!("mount -o loop /var/lib/nspawn-ci/machines/{name}/disk /mnt");
    sh(&format!(
        "{layer} && echo seen >/mnt/upper/mark; umount /mnt"
    ))
    .expect(0);
    let look = kept
        .split("look into it: ")
        .nth(1)
        .unwrap()
        .split("; remove it")
        .next()
        .unwrap();
    let seen = sh(&format!(
        "{look} --quiet --pipe --register=no cat /mark /etc/hostname.none /etc/os-release"
    ));
    assert!(
        seen.out().starts_with("seen\nPRETTY_NAME="),
        "{}",
        seen.describe()
    );
    // A mark of 1970 has expired.
    fs::write(format!("/run/nspawn-ci/{name}/kept"), "1").unwrap();
    call("nspawn-cleanup", ["--stale"]).expect(0);
    assert_eq!(left_of(&name), "");
}

#[test]
fn hanging_boot_of_a_job_reports_pending_jobs() {
    let unit = format!("/run/e2e-hanging-{}.service", std::process::id());
    fs::write(&unit, HANGING).unwrap();
    let bind = format!("--bind-ro={unit}:/etc/systemd/system/systemd-sysctl.service");
    let report = Runner::default()
        .prepare_args(&[&bind, "--timeout=3s"])
        .run(&Job::new(&image()));
    assert!(
        report.log().contains("still waits for these jobs"),
        "{}",
        report.describe()
    );
    let _ = report.expect_system_failure();
    // GitLab Runner calls cleanup at once, which spares a kept machine.
    let report = Runner::default()
        .prepare_args(&[&bind, "--timeout=3s", "--keep=failure"])
        .run(&Job::new(&image()));
    fs::remove_file(unit).unwrap();
    assert!(
        report.log().contains("is kept for 60 min"),
        "{}",
        report.describe()
    );
    assert!(
        fs::exists(format!(
            "/var/lib/nspawn-ci/machines/{}/disk",
            report.machine
        ))
        .unwrap()
    );
    call("nspawn-cleanup", [&report.machine]).expect(0);
    assert_eq!(left_of(&report.machine), "");
}

#[test]
fn machine_that_was_never_made_is_not_kept() {
    let machine = Machine::new();
    let name = format!("no-slot-{}", std::process::id());
    let options = [
        "--name",
        &*name,
        "--keep=failure",
        "--max-machines=1",
        "--timeout=1s",
        &image(),
    ];
    let done = call("nspawn-prepare", options).expect(1);
    assert!(
        done.err().contains("--max-machines") && !done.err().contains("is kept"),
        "{}",
        done.describe()
    );
    assert_eq!(left_of(&name), "");
    drop(machine);
}

#[test]
fn machine_of_a_failed_job_can_be_kept() {
    let keeping = Runner::default().prepare_args(&["--keep=failure"]);
    let _ = keeping
        .run(&Job::new(&image()).script(&["true"]))
        .expect(&Outcome::Success);
    let job = Job::new(&image())
        .script(&["echo traces >/root/traces", "exit 3"])
        .after_script(&["exit 4"]);
    let report = keeping.run(&job);
    assert_eq!(
        report.outcome,
        Outcome::ScriptFailure(3),
        "{}",
        report.describe()
    );
    let name = &*report.machine;
    assert_eq!(
        report.log().matches("is kept for 60 min").count(),
        1,
        "{}",
        report.describe()
    );
    assert_eq!(
        call("nspawn-run", [name, "cat", "/root/traces"])
            .expect(0)
            .out(),
        "traces\n"
    );
    call("nspawn-cleanup", ["--stale"]).expect(0);
    call("nspawn-run", [name, "true"]).expect(0);
    call("nspawn-cleanup", [name]).expect(0);
    assert_eq!(left_of(name), "");
}

#[test]
fn dry_run_of_cleanup_removes_nothing() {
    let machine = Machine::new();
    let mut command = Command::new("nspawn-cleanup");
    let done = finish(command.args(["--dry-run", &machine.name]), b"").expect(0);
    assert_eq!(
        done.out(),
        format!("{}: unit, network, layer, state\n", machine.name)
    );
    machine.run(["true"]).expect(0);
}
