//! `nspawn-exec`, which creates a machine for one command.

use std::fs;
use std::process::{Command, Stdio};

use nspawn_tests::{call, finish, image, left_of, remove_stale, sh};

#[test]
fn streams_and_exit_status_are_passed_through() {
    let name = format!("exec-streams-{}", std::process::id());
    let mut command = Command::new("nspawn-exec");
    command.args([
        &*format!("--name={name}"),
        "--init=stub",
        &image(),
        "sh",
        "-c",
        "cat; echo \"$1\" >&2; exit 7",
        "-",
        "a  b",
    ]);
    let done = finish(&mut command, b"in\0put").expect(7);
    assert_eq!(done.stdout, b"in\0put");
    assert!(done.err().ends_with("a  b\n"), "{}", done.describe());
    assert_eq!(left_of(&name), "");
    call("nspawn-exec", [&*image(), "sh", "-c", "kill -KILL $$"]).expect(137);
}

#[test]
fn errors_have_the_conventional_exit_status() {
    let done = call("nspawn-exec", ["no-such-image", "true"]).expect(125);
    assert!(
        done.err().starts_with("nspawn-prepare: ") && done.err().contains("no-such-image"),
        "{}",
        done.describe()
    );
    call(
        "nspawn-exec",
        ["--init=none", "--layer=nowhere", &image(), "true"],
    )
    .expect(125);
    let done = call("nspawn-exec", [&image()]).expect(125);
    done.expect_err("COMMAND is missing");
    call("nspawn-exec", ["--init=stub", &image(), "no-such-command"]).expect(127);
}

/// Tests signals to the process itself, and to its whole process group as Ctrl-C sends them.
#[test]
fn signal_ends_the_command_and_the_machine() {
    for (target, signal, code) in [
        ("", "TERM", 143),
        ("", "INT", 130),
        ("-", "INT", 130),
        ("-", "HUP", 129),
    ] {
        let name = format!("exec-signal-{}", std::process::id());
        let line = format!(
            "set -m; nspawn-exec --name={name} --init=stub {} sh -c 'echo up >/run/up; exec sleep 600' & \
             until nspawn-run {name} test -e /run/up 2>/dev/null; do sleep 0.05; done; kill -{signal} {target}$!; wait $!",
            image()
        );
        let done = call("bash", ["-c", &line]);
        assert_eq!(done.code(), code, "{target} {signal}: {}", done.describe());
        assert_eq!(left_of(&name), "");
    }
}

/// Tests signals to the whole process group during the cleanup.
#[test]
fn second_signal_does_not_interrupt_the_cleanup() {
    let name = format!("exec-next-{}", std::process::id());
    let shim = std::env::temp_dir().join(&name);
    fs::create_dir(&shim).unwrap();
    let script =
        "#!/bin/sh\nkill -s INT 0; kill -s TERM 0\nPATH=${PATH#*:} exec nspawn-cleanup \"$@\"\n";
    fs::write(shim.join("nspawn-cleanup"), script).unwrap();
    let line = format!(
        "set -m; chmod +x {0}/nspawn-cleanup; \
         PATH={0}:$PATH nspawn-exec --name={name} --init=stub {1} sh -c 'exit 7' & wait $!",
        shim.display(),
        image()
    );
    let done = call("bash", ["-c", &line]);
    fs::remove_dir_all(shim).unwrap();
    assert_eq!(left_of(&name), "");
    done.expect(7);
}

#[test]
fn machine_of_a_killed_caller_is_stale() {
    let name = format!("exec-killed-{}", std::process::id());
    let option = format!("--name={name}");
    let mut child = Command::new("nspawn-exec")
        .args([
            &*option,
            "--init=stub",
            &image(),
            "sh",
            "-c",
            "echo up; exec sleep 600",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0; 3]).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    remove_stale();
    assert_eq!(left_of(&name), "");
}

#[test]
fn many_calls_run_in_one_pipeline() {
    let line = format!(
        "seq 6 | xargs -P 3 -I N nspawn-exec --init=stub {} sh -c 'echo N squared is $((N * N))' | sort",
        image()
    );
    let squares = sh(&line).expect(0).out();
    assert_eq!(squares.lines().last(), Some("6 squared is 36"), "{squares}");
    assert_eq!(squares.lines().count(), 6);
}
