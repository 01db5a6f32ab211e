//! Machines that are kept for inspection after a failure.

use std::fs;

use nspawn_tests::gitlab_runner::{Job, Outcome, Runner};
use nspawn_tests::{Done, Machine, call, image, left_of, remove_stale, sh};

use super::stale;

/// Unit that replaces one of the image and never ends, so that the boot never ends.
const HANGING: &str = "[Unit]\nDefaultDependencies=no\nBefore=multi-user.target\n[Service]\nType=oneshot\nExecStart=/bin/sleep 600\n";

/// A unit file on the host, bound over a unit of the machine. Its service never ends.
struct HangingUnit {
    path: String,
    bind: String,
}

impl HangingUnit {
    fn new(name: &str) -> Self {
        let path = format!("/run/e2e-{name}.service");
        fs::write(&path, HANGING).unwrap();
        let bind = format!("--bind-ro={path}:/etc/systemd/system/systemd-sysctl.service");
        Self { path, bind }
    }

    fn prepare(&self, name: &str, options: &[&str]) -> Done {
        let image = image();
        let common = ["--name", name, &self.bind, "--timeout=4s", &image];
        call("nspawn-prepare", [&common[..], options].concat())
    }
}

impl Drop for HangingUnit {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

#[test]
fn hanging_boot_reports_pending_jobs() {
    let name = format!("hanging-{}", std::process::id());
    let unit = HangingUnit::new(&name);
    let done = unit
        .prepare(&name, &[])
        .expect_error(1, "did not boot within 4 s");
    for words in [
        "still waits for these jobs",
        "systemd-sysctl.service",
        "multi-user.target",
        "[  OK  ] ",
    ] {
        done.expect_err(words);
    }
    assert_eq!(left_of(&name), "");
}

#[test]
fn machine_with_a_hanging_boot_can_be_kept() {
    let name = format!("hanging-kept-{}", std::process::id());
    let unit = HangingUnit::new(&name);
    let done = unit
        .prepare(&name, &["--keep=failure", "--keep-for=2min"])
        .expect(1);
    drop(unit);
    let error = done.err();
    let (message, _) = error.split_once('\n').unwrap();
    assert!(
        message.contains("is kept for 2 min")
            && message.ends_with(&format!("nspawn-cleanup {name}")),
        "{message}"
    );
    assert!(!stale().iter().any(|line| line.contains(&name)));
    check_inspection(&name, message);
    // A mark of 1970 has expired.
    fs::write(format!("/run/nspawn-ci/{name}/kept"), "1").unwrap();
    remove_stale();
    assert_eq!(left_of(&name), "");
}

/// Returns the command in a message about a kept machine.
fn inspect_command(message: &str) -> &str {
    let (_, rest) = message.split_once("inspect it: ").unwrap();
    let (command, _) = rest.split_once("; remove it").unwrap();
    command
}

/// Checks that the command in the message shows the layer over the image.
fn check_inspection(name: &str, message: &str) {
    let layer = format!("mount -o loop /var/lib/nspawn-ci/machines/{name}/disk /mnt");
    sh(&format!(
        "{layer} && echo seen >/mnt/upper/mark; umount /mnt"
    ))
    .expect(0);
    let command = inspect_command(message);
    let seen = sh(&format!(
        "{command} cat mark etc/hostname.none etc/debian_version"
    ));
    assert!(
        seen.out().starts_with("seen\n") && seen.out().lines().count() == 2,
        "{}",
        seen.describe()
    );
}

/// Runs a job that powers its machine off, and checks that the machine's files can be seen.
fn check_inspection_of_ended_job(image: &str, options: &[&str]) {
    let options = [options, &["--keep=failure"]].concat();
    let job = Job::new(image).script(&[
        "echo seen >/opt/mark",
        "perl -e 'rename \"/usr/share/doc\", \"/opt/renamed\" or die'",
        "poweroff; sleep 60",
    ]);
    let report = Runner::default().prepare_args(&options).run(&job);
    let log = report.stage("cleanup").text();
    let command = inspect_command(&log);
    let seen = sh(&format!(
        "cd /; echo 'cat opt/mark; ls -d usr/bin opt/renamed/base-files; touch x; pwd' | {command}"
    ));
    let root = format!("/run/nspawn-ci/{}/root", report.machine);
    assert_eq!(
        seen.out(),
        format!("seen\nopt/renamed/base-files\nusr/bin\n{root}\n"),
        "{options:?}: {}",
        seen.describe()
    );
    seen.expect_err("Read-only file system");
    // The mounts end with the shell.
    assert_eq!(sh(&format!("grep {root} /proc/mounts")).code(), 1);
    call("nspawn-cleanup", [&report.machine]).expect(0);
    assert_eq!(left_of(&report.machine), "");
}

#[test]
fn files_of_machines_that_have_ended_are_shown_with_every_layer() {
    for options in [
        &[][..],
        &["--layer-size=infinity"],
        &["--private-users=no", "--layer-size=infinity"],
    ] {
        check_inspection_of_ended_job(&image(), options);
    }
}

#[test]
fn files_of_a_machine_of_an_image_with_an_unusual_path_are_shown() {
    let directory = format!("/var/tmp/e2e,odd:path's {}", std::process::id());
    let name = format!("odd-{}", std::process::id());
    let link = format!("/var/lib/machines/{name}");
    sh(&format!(
        "cp -a \"$(realpath /var/lib/machines/{})\" \"{directory}\" && ln -s \"{directory}\" {link}",
        image()
    ))
    .expect(0);
    check_inspection_of_ended_job(&name, &[]);
    let disk = format!("{link}.raw");
    sh(&format!(
        "rm {link}; mksquashfs \"{directory}\" {disk} -comp lz4 -quiet -no-progress; rm -r \"{directory}\""
    ))
    .expect(0);
    check_inspection_of_ended_job(&name, &[]);
    fs::remove_file(disk).unwrap();
}

#[test]
fn files_of_a_machine_of_a_stack_are_shown() {
    let name = format!("kept-stack-{}", std::process::id());
    let stack = format!("/var/lib/machines/{name}.mstack");
    sh(&format!(
        "for number in $(seq 2 30); do mkdir -p {stack}/layer@$number/etc; done; \
         ln -s \"$(realpath /var/lib/machines/{})\" {stack}/layer@1",
        image()
    ))
    .expect(0);
    check_inspection_of_ended_job(&name, &[]);
    fs::remove_dir_all(stack).unwrap();
}

#[test]
fn hanging_boot_of_a_job_reports_pending_jobs() {
    let unit = HangingUnit::new(&format!("hanging-job-{}", std::process::id()));
    let report = Runner::default()
        .prepare_args(&[&unit.bind, "--timeout=3s"])
        .run(&Job::new(&image()));
    report.expect_log("still waits for these jobs");
    let _ = report.expect_system_failure();
}

/// GitLab Runner calls cleanup at once after a failed prepare, which spares a kept machine.
#[test]
fn machine_of_a_job_with_a_hanging_boot_can_be_kept() {
    let unit = HangingUnit::new(&format!("hanging-job-kept-{}", std::process::id()));
    let report = Runner::default()
        .prepare_args(&[&unit.bind, "--timeout=3s", "--keep=failure"])
        .run(&Job::new(&image()));
    drop(unit);
    report.expect_log("is kept for 60 min");
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
    remove_stale();
    call("nspawn-run", [name, "true"]).expect(0);
    call("nspawn-cleanup", [name]).expect(0);
    assert_eq!(left_of(name), "");
}
