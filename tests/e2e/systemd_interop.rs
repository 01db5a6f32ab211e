//! Ways in which others have run CI jobs in systemd-nspawn, with systemd's own tools beside ours.
//!
//! Each test covers one approach. What works in that approach must work here, and its known
//! failures must not occur here.

use std::fs;
use std::process::Command;
use std::time::Duration;

use nspawn_tests::{
    BackgroundCommand, Machine, call, expect_lines, finish, image, left_of, wait_until,
};

use crate::cell::{Cell, Sleep, is_registered, unit_properties};

/// Stand-in for a CI job: prints the name of its machine and exits with 5.
const JOB: &str = "echo in $(hostname); exit 5";

fn call_systemd_run(machine: &Machine, script: &str, stdin: &[u8]) -> nspawn_tests::Done {
    let option = format!("--machine={}", machine.name);
    finish(
        Command::new("systemd-run")
            .args(["--quiet", "--wait", "--pipe", &option, "sh", "-c", script]),
        stdin,
    )
}

/// Runs `machinectl shell`, which needs a terminal; script(1) provides one.
fn call_machinectl_shell(machine: &Machine) -> nspawn_tests::Done {
    let shell = format!(
        "machinectl --quiet shell {} /bin/sh -c 'echo in $(hostname)'",
        machine.name
    );
    call(
        "script",
        ["--quiet", "--return", "--command", &shell, "/dev/null"],
    )
}

/// Approach: a read-only root, and a work directory in memory.
///
/// This approach has neither state for the next command nor room for large builds. The other values
/// of `--init` and `--layer` provide both.
#[test]
fn read_only_root_keeps_nothing_between_runs() {
    let image = image();
    let machine = Cell {
        init: "none",
        layer: "none",
        image: &image,
    }
    .machine(&[]);
    let unit = format!("nspawn-{}.service", machine.name);
    assert!(
        !left_of(&machine.name).contains(&unit),
        "a unit of the machine runs"
    );
    assert!(
        !fs::exists(format!("/var/lib/nspawn-ci/machines/{}", machine.name)).unwrap(),
        "the machine has a layer on disk"
    );
    let script = "cd /builds && echo built >product && cat product; echo x >/usr/x 2>/dev/null || echo read-only";
    assert_eq!(machine.sh(script).expect(0).out(), "built\nread-only\n");
    machine.run(["test", "-e", "/builds/product"]).expect(1);
    assert!(
        !left_of(&machine.name).contains(&unit),
        "a unit of the machine still runs"
    );
    call("nspawn-cleanup", [&machine.name]).expect(0);
    assert_eq!(left_of(&machine.name), "");
    // The same in one command, which creates and removes the machine.
    let done = call("nspawn-run", ["--image", &image, "sh", "-c", script]).expect(0);
    assert_eq!(done.out(), "built\nread-only\n");
}

/// Approach: an overlay without a boot. Files stay from run to run, and processes do not.
#[test]
fn init_none_keeps_files_but_no_processes() {
    let (image, sleep) = (image(), Sleep::new());
    let machine = Cell {
        init: "none",
        layer: "disk",
        image: &image,
    }
    .machine(&[]);
    machine
        .sh(&format!(
            "echo mine >/etc/own; {} & echo $$ >/root/first",
            sleep.command()
        ))
        .expect(0);
    assert_eq!(machine.run(["cat", "/etc/own"]).expect(0).out(), "mine\n");
    assert!(!sleep.is_running() && !is_registered(&machine));
    assert!(!fs::exists(format!("/var/lib/machines/{image}/etc/own")).unwrap());
}

/// Approach: images in /var/lib/machines, and machines managed by machinectl.
///
/// Any number of registered machines share one image.
#[test]
fn machinectl_manages_images_and_machines() {
    let image = image();
    let images = call("machinectl", ["list-images", "--no-legend"])
        .expect(0)
        .out();
    assert!(
        images
            .lines()
            .any(|line| line.split_whitespace().next() == Some(&image)),
        "{images}"
    );
    let machines = [
        Machine::new(),
        Machine::new(),
        Cell {
            init: "stub",
            layer: "tmpfs",
            image: &image,
        }
        .machine(&[]),
    ];
    for machine in &machines {
        assert!(is_registered(machine));
        let shown = call("machinectl", ["show", &machine.name]).expect(0).out();
        let unit = format!("Unit=nspawn-{}.service", machine.name);
        expect_lines(&shown, &["Class=container", "State=running", &unit]);
    }
    let [one, other, stub] = &machines;
    call(
        "machinectl",
        ["copy-to", &one.name, "/etc/os-release", "/root/copied"],
    )
    .expect(0);
    one.run(["test", "-e", "/root/copied"]).expect(0);
    other.run(["test", "-e", "/root/copied"]).expect(1);
    for machine in [one, stub] {
        call("machinectl", ["terminate", &machine.name]).expect(0);
        wait_until("the machine is terminated", Duration::from_secs(20), || {
            !is_registered(machine)
        });
        machine.run(["true"]).expect(125);
    }
    other.run(["true"]).expect(0);
}

/// Approach: boot, then `machinectl shell`.
///
/// `machinectl shell` does not return the exit status of the command; `nspawn-run` does.
#[test]
fn machinectl_shell_works_and_nspawn_run_adds_the_exit_status() {
    let machine = Machine::new();
    let done = call_machinectl_shell(&machine).expect(0);
    done.expect_out(&format!("in {}", machine.name));
    let command = format!("nspawn-run {}", machine.name);
    let terminal = ["--quiet", "--return", "--command", &command, "/dev/null"];
    let done = finish(
        Command::new("script").args(terminal),
        b"tty; hostname; exit 5\r",
    )
    .expect(5);
    for shown in ["/dev/pts/", &machine.name] {
        done.expect_out(shown);
    }
}

/// Approach: boot, then `systemd-run --machine`.
///
/// `nspawn-run` has the same streams and exit statuses, and never reports the death of a machine as
/// success.
#[test]
fn systemd_run_and_nspawn_run_agree_on_streams_and_status() {
    let machine = Machine::new();
    let script = "cat; echo err >&2; exit 5";
    let by_systemd = call_systemd_run(&machine, script, b"a\0b\xff").expect(5);
    let by_nspawn_run = finish(&mut machine.command(["sh", "-c", script]), b"a\0b\xff").expect(5);
    assert_eq!(
        (&by_systemd.stdout, &by_systemd.stderr),
        (&by_nspawn_run.stdout, &by_nspawn_run.stderr)
    );
    for (end, cause) in [
        (
            "systemctl poweroff --force --force; sleep 60",
            "it was shut down",
        ),
        ("kill -TERM $$; sleep 60", ""),
        ("systemctl stop nspawn-agent; sleep 60", ""),
    ] {
        let machine = Machine::new();
        let done = machine.sh(end);
        assert!(![0, 255].contains(&done.code()), "{}", done.describe());
        done.expect_err(cause);
    }
}

/// Approach: a detached systemd-nspawn, started by a `systemd-run` that does not wait for
/// readiness.
///
/// There the next command fails, because the machine is not up yet. `nspawn-prepare` returns once
/// commands can be run, by any tool.
#[test]
fn commands_run_as_soon_as_prepare_returns() {
    for round in 0..9 {
        let machine = Machine::new();
        match round % 3 {
            0 => drop(machine.sh(JOB).expect(5)),
            1 => drop(call_systemd_run(&machine, JOB, b"").expect(5)),
            _ => {
                let done = call_machinectl_shell(&machine).expect(0);
                done.expect_out(&machine.name);
            }
        }
    }
    let image = image();
    for _ in 0..3 {
        Cell {
            init: "stub",
            layer: "tmpfs",
            image: &image,
        }
        .machine(&[])
        .sh(JOB)
        .expect(5);
    }
}

/// Approach: a detached systemd-nspawn with `--notify-ready=yes`, which is what we do.
///
/// The limits of the unit apply to the payload, and cleanup waits until its processes have ended.
#[test]
fn unit_notifies_readiness_and_limits_its_payload() {
    let machine = Machine::new();
    let shown = unit_properties(&machine, "Type,ActiveState,ExecStart,MemoryMax,TasksMax");
    for words in [
        "Type=notify",
        "ActiveState=active",
        "--notify-ready=yes",
        "--keep-unit",
    ] {
        assert!(shown.contains(words), "no {words} in {shown}");
    }
    assert!(
        !shown.contains("MemoryMax=infinity") && !shown.contains("TasksMax=infinity"),
        "{shown}"
    );
    let sleep = Sleep::new();
    let writers = "for i in 1 2 3 4; do (while :; do echo x >/root/$(date +%N); done) & done";
    let running = BackgroundCommand::start(
        &machine,
        &format!("{writers}; echo on; {}", sleep.command()),
    );
    wait_until("the process runs", Duration::from_secs(20), || {
        sleep.is_running()
    });
    sleep.check_cgroup(&machine, "payload/");
    call("nspawn-cleanup", [&machine.name]).expect(0);
    assert_eq!(left_of(&machine.name), "");
    running.wait().expect_error(125, "");
}

/// Approach: `DevicePolicy=` of the unit.
///
/// The machine uses the UIDs of the host, so that its root may create the device node.
#[test]
fn device_policy_of_the_unit_applies_to_the_machine() {
    let open = "mknod /dev/device c 10 229 && exec 3<>/dev/device";
    let [closed, opened] = [&[][..], &["--property=DeviceAllow=/dev/fuse rwm"]]
        .map(|more| Machine::with(&[&["--private-users=no"], more].concat()));
    let done = closed.run(["bash", "-c", open]);
    assert!(
        done.code() != 0 && done.err().contains("Operation not permitted"),
        "{}",
        done.describe()
    );
    opened.run(["bash", "-c", open]).expect(0);
    assert_eq!(
        unit_properties(&closed, "DevicePolicy"),
        "DevicePolicy=closed\n"
    );
}
