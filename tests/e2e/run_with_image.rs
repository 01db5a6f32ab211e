//! `nspawn-run --image`, which creates a machine for one command.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nspawn_tests::{call, finish, image, keep_stale, left_of, random, sh, wait_until};

use crate::cell::Sleep;

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
    // Words after the image belong to the command, even if they are options of nspawn-run.
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
        let running = sleep.start_with_image(&image, &["bash", "-c", &script]);
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
        drop(running.wait());
        assert!(!sleep.is_running());
        assert_eq!(left_of(&name), "");
    }
}

/// Tests that the machine of a killed `nspawn-run --image` ends, and is listed as stale.
#[test]
fn machine_of_a_killed_run_ends_and_is_stale() {
    let (image, sleep) = (image(), Sleep::new());
    let script = format!("echo on; {}", sleep.command());
    let running = sleep.start_with_image(&image, &["sh", "-c", &script]);
    let name = sleep.machine();
    let _guard = keep_stale();
    running.signal("KILL");
    drop(running.wait());
    wait_until("the command has ended", Duration::from_secs(5), || {
        !sleep.is_running()
    });
    let unit = format!("/sys/fs/cgroup/machine.slice/machine-ci.slice/nspawn-{name}.service");
    wait_until("the machine has ended", Duration::from_secs(40), || {
        !Path::new(&unit).exists()
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
        .expect_error(82, "can't use --image in a GitLab job");
}

/// Tests signals at various moments, including while the machine is being created.
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
        thread::sleep(Duration::from_millis(20 + 80 * moment));
        call("kill", ["-TERM", &child.id().to_string()]).expect(0);
        assert_eq!(child.wait().unwrap().signal(), Some(15), "{moment}");
        assert!(!sleep.is_running());
        assert_eq!(left_of(&name), "", "{moment}");
    }
    fs::remove_file(link).unwrap();
}
