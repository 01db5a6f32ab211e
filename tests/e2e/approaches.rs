//! Every way to run a CI job by systemd-nspawn that has been found by trial, named after it: what worked works, and
//! what failed does not.

use std::fs;
use std::process::Command;
use std::time::Duration;

use nspawn_tests::{BackgroundCommand, Machine, call, finish, image, left_of, wait_until};

use crate::cell::{Cell, Sleep, is_registered, unit_properties};

/// What stands for each of these calls: it ends with 5, and says in which machine.
const JOB: &str = "echo in $(hostname); exit 5";

fn by_systemd_run(machine: &Machine, script: &str, stdin: &[u8]) -> nspawn_tests::Done {
    let option = format!("--machine={}", machine.name);
    finish(
        Command::new("systemd-run")
            .args(["--quiet", "--wait", "--pipe", &option, "sh", "-c", script]),
        stdin,
    )
}

/// On a terminal, which script(1) makes.
fn by_machinectl_shell(machine: &Machine) -> nspawn_tests::Done {
    let shell = format!(
        "machinectl --quiet shell {} /bin/sh -c 'echo in $(hostname)'",
        machine.name
    );
    call(
        "script",
        ["--quiet", "--return", "--command", &shell, "/dev/null"],
    )
}

/// A root that is read-only and a work directory in memory. What was to be found: state for the next command, and
/// room for big builds; both are other modes.
#[test]
fn fully_ephemeral() {
    let image = image();
    let machine = Cell {
        init: "none",
        layer: "none",
        image: &image,
    }
    .machine(&[]);
    let unit = format!("nspawn-{}.service", machine.name);
    assert!(!left_of(&machine.name).contains(&unit), "something runs");
    assert!(
        !fs::exists(format!("/var/lib/nspawn-ci/machines/{}", machine.name)).unwrap(),
        "there is a layer"
    );
    let script = "cd /builds && echo built >product && cat product; echo x >/usr/x 2>/dev/null || echo read-only";
    assert_eq!(machine.sh(script).expect(0).out(), "built\nread-only\n");
    machine.run(["test", "-e", "/builds/product"]).expect(1);
    assert!(!left_of(&machine.name).contains(&unit), "something runs on");
    call("nspawn-cleanup", [&machine.name]).expect(0);
    assert_eq!(left_of(&machine.name), "");
    // In one command, and with more memory than nobody asks for.
    let done = call("nspawn-run", ["--image", &image, "sh", "-c", script]).expect(0);
    assert_eq!(done.out(), "built\nread-only\n");
}

/// Files last, processes don't.
#[test]
fn overlay_without_boot() {
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
    assert!(!sleep.is_there() && !is_registered(&machine));
    assert!(!fs::exists(format!("/var/lib/machines/{image}/etc/own")).unwrap());
}

/// Images are those that machinectl shows, and any number of machines that it shows as well share one.
#[test]
fn machinectl_and_var_lib_machines() {
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
        for line in ["Class=container", "State=running", &unit] {
            assert!(
                shown.lines().any(|shown| shown == line),
                "no {line} in {shown}"
            );
        }
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
        wait_until("it is terminated", Duration::from_secs(20), || {
            !is_registered(machine)
        });
        machine.run(["true"]).expect(125);
    }
    other.run(["true"]).expect(0);
}

/// It works, without an exit status; our shell on a terminal has one.
#[test]
fn boot_and_machinectl_shell() {
    let machine = Machine::new();
    let done = by_machinectl_shell(&machine).expect(0);
    assert!(
        done.out().contains(&format!("in {}", machine.name)),
        "{}",
        done.describe()
    );
    let ours = format!("nspawn-run {}", machine.name);
    let terminal = ["--quiet", "--return", "--command", &ours, "/dev/null"];
    let done = finish(
        Command::new("script").args(terminal),
        b"tty; hostname; exit 5\r",
    )
    .expect(5);
    for shown in ["/dev/pts/", &machine.name] {
        assert!(done.out().contains(shown), "{}", done.describe());
    }
}

/// It works; ours has the same streams and statuses, and takes no machine's death for a success.
#[test]
fn boot_and_systemd_run() {
    let machine = Machine::new();
    let script = "cat; echo err >&2; exit 5";
    let theirs = by_systemd_run(&machine, script, b"a\0b\xff").expect(5);
    let ours = finish(&mut machine.command(["sh", "-c", script]), b"a\0b\xff").expect(5);
    assert_eq!(
        (&theirs.stdout, &theirs.stderr),
        (&ours.stdout, &ours.stderr)
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
        assert!(done.err().contains(cause), "{}", done.describe());
    }
}

/// By a systemd-run that returns before the machine is up, what comes next fails. With us nothing does: a prepare
/// returns when commands can be run, by whatever runs them.
#[test]
fn detached_by_systemd_run_never() {
    for round in 0..9 {
        let machine = Machine::new();
        match round % 3 {
            0 => drop(machine.sh(JOB).expect(5)),
            1 => drop(by_systemd_run(&machine, JOB, b"").expect(5)),
            _ => {
                let done = by_machinectl_shell(&machine).expect(0);
                assert!(done.out().contains(&machine.name), "{}", done.describe());
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

/// The default. Its limits are the payload's, and cleanup waits for the end of those that write.
#[test]
fn detached_with_notify_ready() {
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
    wait_until("it runs", Duration::from_secs(20), || sleep.is_there());
    let place = sleep.cgroup();
    assert!(
        place.contains(&format!(
            "/machine-ci.slice/nspawn-{}.service/payload/",
            machine.name
        )),
        "{place}"
    );
    call("nspawn-cleanup", [&machine.name]).expect(0);
    assert_eq!(left_of(&machine.name), "");
    running.end().expect_error(125, "");
}

/// With the host's users, so that root in the machine may make the device.
#[test]
fn device_policy_on_the_unit() {
    let open = "mknod /root/device c 10 229 && exec 3<>/root/device";
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
