//! Invalid names and values of options.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;

use nspawn_tests::{call, finish, image, left_of, scratch};

#[test]
fn invalid_machine_names_are_refused() {
    let long = "x".repeat(65);
    let image = image();
    for name in [
        "", ".", "..", "../x", "a/b", "a\nb", ".a", "-a", "a_b", &long,
    ] {
        let option = format!("--name={name}");
        call("nspawn-prepare", [&*option, &image]).expect_error(1, "as a machine's name");
        call("nspawn-run", ["--", name, "true"]).expect_error(125, "as a machine's name");
        call("nspawn-cleanup", ["--", name]).expect_error(1, "as a machine's name");
    }
    let bytes = OsStr::from_bytes(b"a\xff");
    call(
        "nspawn-prepare",
        [OsStr::new("--name"), bytes, image.as_ref()],
    )
    .expect_error(1, "it is not UTF-8");
    call("nspawn-cleanup", [bytes]).expect_error(1, "it is not UTF-8");
}

#[test]
fn invalid_option_values_are_refused() {
    let image = image();
    for (option, words) in [
        ("--timeout=0", "greater than zero"),
        ("--timeout=soon", "soon"),
        ("--property=MemoryMax", "it needs NAME=VALUE"),
        ("--setenv==x", "has no name"),
        ("--setenv=E2E_NOT_SET", "no such variable"),
        ("--no-such-option", "--no-such-option"),
    ] {
        call("nspawn-prepare", [option, &image]).expect_error(1, words);
    }
    call(
        "nspawn-prepare",
        [OsStr::from_bytes(b"--bind=/\xff"), image.as_ref()],
    )
    .expect_error(1, "not UTF-8");
    call("nspawn-run", [] as [&str; 0]).expect_error(125, "<MACHINE>");
    call("nspawn-cleanup", [] as [&str; 0]).expect_error(1, "no machine is named");
    call("nspawn-cleanup", ["--all", "x"]).expect_error(1, "--all");
}

#[test]
fn values_that_systemd_refuses_are_named() {
    let image = image();
    let name = format!("values-{}", std::process::id());
    let done = call(
        "nspawn-prepare",
        ["--name", &name, "--property=NoSuchProperty=1", &image],
    )
    .expect_error(1, "did not start");
    done.expect_err("NoSuchProperty");
    assert_eq!(left_of(&name), "");
}

#[test]
fn binds_that_can_not_be_mounted_are_refused_at_once() {
    let (image, here) = (image(), scratch("bad-binds"));
    std::os::unix::fs::symlink("/etc", here.join("link")).unwrap();
    let link = format!("--bind-ro={}/link/ssl:/x:nosymlinks", here.display());
    let name = format!("binds-{}", std::process::id());
    for (bind, words) in [
        (
            "--bind=/no/such/source",
            "can't bind mount /no/such/source: it does not exist on the host",
        ),
        ("--bind-ro=/etc/passwd/x:/x", "it does not exist"),
        (&*link, "leads through a symbolic link"),
        ("--bind=/etc:x", "can't bind mount on x"),
    ] {
        let options = ["--name", &name, "--verbose", bind, &image];
        let done = call("nspawn-prepare", options).expect_error(1, words);
        assert!(!done.err().contains("systemd-run"), "{}", done.describe());
    }
    let options = ["--name", &name, "--bind=/etc:/x:nosuchoption", &image];
    call("nspawn-prepare", options)
        .expect(1)
        .expect_err("nosuchoption");
    assert_eq!(left_of(&name), "");
    std::fs::remove_dir_all(here).unwrap();
}

#[test]
fn invalid_init_and_layer_values_are_refused() {
    let image = image();
    let name = format!("modes-{}", std::process::id());
    for (options, words) in [
        (&["--init=upstart"][..], "'upstart' for '--init"),
        (&["--init="], "--init"),
        (&["--init=None"], "'None' for '--init"),
        (
            &["--layer=overlay"],
            "\"overlay\" must be one of disk, tmpfs, snapshot, none",
        ),
        (&["--layer="], "must be one of disk"),
        (&["--layer=disk:1G"], "disk:1G"),
        (&["--layer=none:1G"], "none:1G"),
        (&["--layer=tmpfs:"], "--layer=tmpfs:"),
        (&["--layer=tmpfs:much"], "--layer=tmpfs:much: "),
        (&["--layer=tmpfs:1M"], "1M is not between 32M and"),
        (&["--layer=tmpfs:0"], "0 is not between"),
        (&["--layer=tmpfs:120%"], "120% is not between 1% and 100%"),
        (&["--layer-size=0%"], "0% is not between 1% and 100%"),
        (&["--layer-size=-5G"], "-5G"),
        (&["--layer-size=1T1"], "1T1"),
        (&["--layer=tmpfs", "--layer-size=99T"], "99T is not between"),
        (&["--layer=snapshot:1G"], "snapshot:1G"),
        (
            &["--layer=snapshot", "--layer-size=1G"],
            "can't limit the size of --layer=snapshot",
        ),
        (
            &["--layer=disk", "--layer-size=1G", "--private-users=no"],
            "--layer-size needs a user namespace",
        ),
    ] {
        let arguments = options.iter().copied().chain(["--name", &name, &image]);
        call("nspawn-prepare", arguments).expect_error(1, words);
    }
    // The same by environment variables, as in the configuration of GitLab Runner.
    let mut job = Command::new("nspawn-prepare");
    job.envs([("NSPAWN_INIT", "upstart"), ("NSPAWN_LAYER", "tmpfs")])
        .args(["--name", &name, &image]);
    finish(&mut job, b"").expect_error(1, "'upstart' for '--init");
    assert_eq!(left_of(&name), "");
}

#[test]
fn boot_is_ended_after_the_timeout() {
    let name = format!("slow-{}", std::process::id());
    let arguments = [
        "--name",
        &*name,
        "--timeout=1s",
        "--property=ExecStartPre=/bin/sleep 30",
        &image(),
    ];
    call("nspawn-prepare", arguments).expect_error(1, "did not start");
    assert_eq!(left_of(&name), "");
}

#[test]
fn wait_for_the_agent_of_a_boot_without_its_target_is_bounded() {
    let name = format!("untargeted-{}", std::process::id());
    let arguments = [
        "15",
        "nspawn-prepare",
        "--name",
        &*name,
        "--timeout=2s",
        "--boot-target=missing.target",
        &image(),
    ];
    call("timeout", arguments).expect_error(1, "did not start");
    assert_eq!(left_of(&name), "");
}
