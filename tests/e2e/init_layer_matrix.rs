//! The checks of [`Cell`] for each combination of `--init` and `--layer`, and GitLab jobs in some.

use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use nspawn_tests::sequencer::{Job, Outcome, Runner};
use nspawn_tests::{call, finish, image, left_of, random, sh, wait_until};

use crate::cell::{Cell, Running, Sleep, unit_properties};

macro_rules! cells {
    ($($name:ident: $init:literal, $layer:literal;)*) => {
        $(#[test]
        fn $name() {
            check($init, $layer);
        })*
    };
}

cells! {
    systemd_on_disk: "systemd", "disk";
    systemd_on_tmpfs: "systemd", "tmpfs";
    systemd_on_snapshot: "systemd", "snapshot";
    systemd_on_none: "systemd", "none";
    stub_on_disk: "stub", "disk";
    stub_on_tmpfs: "stub", "tmpfs";
    stub_on_snapshot: "stub", "snapshot";
    stub_on_none: "stub", "none";
    none_on_disk: "none", "disk";
    none_on_tmpfs: "none", "tmpfs";
    none_on_snapshot: "none", "snapshot";
    none_on_none: "none", "none";
}

// Most hosts have a file system that can't share blocks, so `filesystems` covers snapshots.
fn check(init: &'static str, layer: &'static str) {
    let image = image();
    let cell = Cell {
        init,
        layer,
        image: &image,
    };
    let system = sh("stat --file-system --format=%T /var/lib")
        .expect(0)
        .out();
    if layer != "snapshot" || ["btrfs\n", "xfs\n"].contains(&&*system) {
        return cell.check();
    }
    let name = format!("no-snapshot-{init}-{}", std::process::id());
    let done = cell.prepare(&["--name", &name]);
    for words in [
        "/var/lib/nspawn-ci on one file system that can (btrfs, xfs)",
        "--layer=disk needs none",
    ] {
        assert!(done.err().contains(words), "{}", done.describe());
    }
    done.expect_error(1, "can't be copied so that it shares its blocks");
    assert_eq!(left_of(&name), "");
}

fn gitlab_job(init: &'static str, layer: &'static str) {
    let image = image();
    let sleep = Sleep::new();
    let job = Job::new(&image)
        .stage("get_sources", &["echo source > file", "mkdir -p /root/bin"])
        .stage(
            "restore_cache",
            &[
                "echo cached > /root/cache",
                &format!("{} &", sleep.command()),
            ],
        )
        .script(&[
            "cat file /root/cache",
            "pwd",
            &format!(
                "pgrep -xf '{}' >/dev/null && echo runs || echo ended",
                sleep.command()
            ),
            "echo built > product",
            "exit 7",
        ])
        .after_script(&["cat product", "echo \"it was $CI_JOB_STATUS\""])
        .stage("upload_artifacts_on_failure", &["cat product"]);
    let options = Cell {
        init,
        layer,
        image: &image,
    }
    .options();
    let runner = Runner::default().prepare_args(&options.each_ref().map(String::as_str));
    let report = runner.run(&job).expect(&Outcome::ScriptFailure(7));
    let process = if init == "none" { "ended" } else { "runs" };
    let text = format!("source\ncached\n/builds/group/project\n{process}\n");
    assert_eq!(report.stage("build_script").text(), text);
    assert_eq!(
        report.stage("after_script").text(),
        "built\nit was failed\n"
    );
    assert_eq!(
        report.stage("upload_artifacts_on_failure").text(),
        "built\n"
    );
    assert_eq!(left_of(&report.machine), "");
    assert!(!sleep.is_there());
}

#[test]
fn gitlab_job_runs_with_stub_on_disk() {
    gitlab_job("stub", "disk");
}

#[test]
fn gitlab_job_runs_with_none_on_disk() {
    gitlab_job("none", "disk");
}

#[test]
fn gitlab_job_runs_with_systemd_on_tmpfs() {
    gitlab_job("systemd", "tmpfs");
}

#[test]
fn command_runs_in_a_machine_of_the_image() {
    let image = image();
    let run = |words: &[&str]| call("nspawn-run", ["--image", &image].iter().chain(words));
    assert_eq!(
        run(&["sh", "-c", "echo out; echo err >&2; exit 42"])
            .expect(42)
            .out(),
        "out\n"
    );
    // The output may also list limits that this host's kernel can't enforce.
    let missing = run(&["no-such-command"]).expect(127).err();
    assert!(
        missing.contains("nspawn-run: can't run \"no-such-command\": No such file"),
        "{missing}"
    );
    // All words after the image belong to the command.
    assert_eq!(
        run(&["ls", "-t", "-d", "/usr", "--"]).expect(0).out(),
        "/usr\n"
    );
    let bytes = random(2_000_000, 3);
    let mut cat = Command::new("nspawn-run");
    assert!(
        finish(cat.args([&format!("--image={image}"), "cat"]), &bytes)
            .expect(0)
            .stdout
            == bytes
    );
    let mut script = Command::new("nspawn-run");
    let script = script.args(["--image", &image, "-E", "A=1"]);
    assert_eq!(
        finish(script, b"touch ~/x; echo $A; test -w /etc || exit 6")
            .expect(6)
            .out(),
        "1\n"
    );
}

#[test]
fn machine_ends_with_its_command() {
    let image = image();
    for signal in ["", "TERM", "INT"] {
        let sleep = Sleep::new();
        let script = format!(
            "setsid {} & echo on; {}",
            sleep.command(),
            if signal.is_empty() { "sleep 1" } else { "wait" }
        );
        let running = Running::of(
            Command::new("nspawn-run").args(["--image", &image, "bash", "-c", &script]),
        );
        wait_until("the command sleeps", Duration::from_secs(5), || {
            sleep.is_there()
        });
        let name = sleep.machine();
        assert!(
            sh("machinectl list --no-legend")
                .expect(0)
                .out()
                .contains(&name)
        );
        if !signal.is_empty() {
            running.signal(signal);
        }
        drop(running.end());
        assert!(!sleep.is_there());
        assert_eq!(left_of(&name), "");
    }
}

/// The serial tests remove the stale remains, since `--stale` would remove those of other tests too.
#[test]
fn machine_of_a_killed_run_ends_and_is_stale() {
    let (image, sleep) = (image(), Sleep::new());
    let script = format!("echo on; {}", sleep.command());
    let running =
        Running::of(Command::new("nspawn-run").args(["--image", &image, "sh", "-c", &script]));
    wait_until("the command sleeps", Duration::from_secs(5), || {
        sleep.is_there()
    });
    let name = sleep.machine();
    running.signal("KILL");
    drop(running.end());
    wait_until("the command has ended", Duration::from_secs(5), || {
        !sleep.is_there()
    });
    let unit = format!("/sys/fs/cgroup/machine.slice/machine-ci.slice/nspawn-{name}.service");
    wait_until("the machine has ended", Duration::from_secs(40), || {
        !std::path::Path::new(&unit).exists()
    });
    let stale = call("nspawn-cleanup", ["--stale", "--dry-run"])
        .expect(0)
        .out();
    assert!(
        stale
            .lines()
            .any(|line| line.starts_with(&format!("{name}:"))),
        "{stale}"
    );
    call("nspawn-cleanup", [&name]).expect(0);
    assert_eq!(left_of(&name), "");
}

#[test]
fn unknown_images_and_gitlab_jobs_are_refused() {
    call("nspawn-run", ["--image=no-such-image", "true"])
        .expect_error(125, "no image \"no-such-image\"");
    call("nspawn-run", ["--image=../x", "true"]).expect_error(125, "no image");
    let mut job = Command::new("nspawn-run");
    let job = job.envs([
        ("CUSTOM_ENV_CI_JOB_ID", "1"),
        ("SYSTEM_FAILURE_EXIT_CODE", "82"),
    ]);
    finish(job.args(["--image", &image(), "true"]), b"")
        .expect_error(82, "--image is not for GitLab jobs");
}

#[test]
fn concurrent_commands_share_a_machine_without_init() {
    let image = image();
    for layer in ["disk", "none"] {
        let machine = Cell {
            init: "none",
            layer,
            image: &image,
        }
        .machine(&[]);
        std::thread::scope(|scope| {
            for code in 40..46 {
                let machine = &machine;
                scope.spawn(move || {
                    (0..4).for_each(|_| drop(machine.sh(&format!("exit {code}")).expect(code)))
                });
            }
        });
        assert_eq!(
            unit_properties(&machine, "ActiveState"),
            "ActiveState=inactive\n"
        );
        call("nspawn-cleanup", [&machine.name]).expect(0);
        assert_eq!(left_of(&machine.name), "");
    }
}

/// Tests that no run creates anything again for a machine that has been removed.
#[test]
fn cleanup_at_any_moment_of_a_run_leaves_nothing() {
    let image = image();
    for moment in 0..8 {
        let machine = Cell {
            init: "none",
            layer: "tmpfs",
            image: &image,
        }
        .machine(&[]);
        std::thread::scope(|scope| {
            (0..3).for_each(|_| drop(scope.spawn(|| machine.run(["sleep", "0.1"]))));
            std::thread::sleep(Duration::from_millis(60 * moment));
            call("nspawn-cleanup", [&machine.name]).expect(0);
        });
        assert_eq!(left_of(&machine.name), "", "{moment}");
    }
}

/// Tests signals at various moments, also while the machine is being made.
#[test]
fn signal_at_any_moment_ends_command_and_machine() {
    // The names of the machines begin with the name of the image.
    let (name, sleep) = (format!("signals-{}", std::process::id()), Sleep::new());
    let link = format!("/var/lib/machines/{name}");
    symlink(image(), &link).unwrap();
    for moment in 0..6 {
        let command = ["--image", &name, "sh", "-c", sleep.command()];
        let mut run = Command::new("nspawn-run");
        let mut child = run
            .args(command)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(20 + 80 * moment));
        call("kill", ["-TERM", &child.id().to_string()]).expect(0);
        assert_eq!(child.wait().unwrap().signal(), Some(15), "{moment}");
        assert!(!sleep.is_there());
        assert_eq!(left_of(&name), "", "{moment}");
    }
    std::fs::remove_file(link).unwrap();
}
