//! Bad input to the programs.
//!
//! Each case yields one clear line and the documented exit status, leaves nothing behind, and does
//! not touch machines or files of others.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::Command;

use nspawn_tests::{call, finish, image, left_of, sh};

#[test]
fn obstacle_in_place_of_a_lock_is_named() {
    let name = format!("obstacle-{}", std::process::id());
    let directory = format!("/run/nspawn-ci/{name}");
    sh(&format!(
        "mkdir -p {directory} && ln -s /nonexistent/lock {directory}/lock"
    ))
    .expect(0);
    let done = call(
        "timeout",
        ["10", "nspawn-prepare", "--name", &name, &image()],
    );
    let cleaned = call("timeout", ["10", "nspawn-cleanup", &name]);
    sh(&format!("rm -r {directory}")).expect(0);
    done.expect_error(1, &format!("{directory}/lock is in the way"));
    cleaned.expect_error(1, "is in the way");
}

#[test]
fn unit_of_the_host_blocks_the_machine_name() {
    let unit = format!(
        "/run/systemd/system/nspawn-own-{}.service",
        std::process::id()
    );
    sh(&format!(
        "printf '[Service]\nExecStart=/bin/sleep 600\n' >{unit}; systemctl daemon-reload; systemctl start {}",
        unit.rsplit('/').next().unwrap()
    ))
    .expect(0);
    let done = call(
        "nspawn-prepare",
        ["--name", &format!("own-{}", std::process::id()), &image()],
    );
    let active = sh(&format!(
        "u=$(basename {unit}); systemctl is-active $u; systemctl stop $u; rm {unit}; systemctl daemon-reload"
    ));
    done.expect_error(1, "this host has a unit");
    assert_eq!(active.out(), "active\n");
}

#[test]
fn invalid_machine_names_are_refused() {
    let long = "x".repeat(65);
    let image = image();
    for name in [
        "", ".", "..", "../x", "a/b", "a\nb", ".a", "-a", "a_b", &long,
    ] {
        let option = format!("--name={name}");
        call("nspawn-prepare", [&*option, &image]).expect_error(1, "can't be a machine's name");
        call("nspawn-run", ["--", name, "true"]).expect_error(125, "can't be a machine's name");
        call("nspawn-cleanup", ["--", name]).expect_error(1, "can't be a machine's name");
    }
    let bytes = OsStr::from_bytes(b"a\xff");
    call(
        "nspawn-prepare",
        [OsStr::new("--name"), bytes, image.as_ref()],
    )
    .expect_error(1, "it is not UTF-8");
    call("nspawn-cleanup", [bytes]).expect_error(1, "it is not UTF-8");
}

/// A directory in `/var/lib/machines`, which is deleted at the end of its test.
struct FakeImage(PathBuf);

impl FakeImage {
    fn new(kind: &str) -> Self {
        let path = PathBuf::from(format!(
            "/var/lib/machines/e2e-{kind}-{}",
            std::process::id()
        ));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(self, path: &str) -> Self {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
        self
    }

    #[track_caller]
    fn is_refused(&self, words: &str) {
        let prefix = format!("refused-{}", std::process::id());
        let name = self.0.file_name().unwrap();
        call(
            "nspawn-prepare",
            ["--name".as_ref(), OsStr::new(&prefix), name],
        )
        .expect_error(1, words);
        assert_eq!(left_of(&prefix), "");
    }
}

impl Drop for FakeImage {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0).or_else(|_| fs::remove_file(&self.0));
    }
}

#[test]
fn unusable_images_are_refused() {
    let list = call("nspawn-prepare", ["no-such-image"])
        .expect_error(1, "no image \"no-such-image\"")
        .err();
    assert!(list.contains(&image()), "{list}");
    for reference in ["../../etc", "/etc", "..", "a\nb", ""] {
        call("nspawn-prepare", ["--", reference]).expect_error(1, "no image");
    }
    call("nspawn-prepare", [] as [&str; 0]).expect_error(1, "no image is named");
    let empty = FakeImage::new("empty");
    empty.is_refused("is not an OS tree");
    FakeImage::new("bare")
        .file("usr/bin/env")
        .is_refused("has no systemd");
    let systemd = FakeImage::new("no-dbus").file("usr/lib/systemd/systemd");
    systemd.is_refused("has no D-Bus daemon");
    let file = FakeImage::new("file");
    fs::remove_dir(&file.0).unwrap();
    fs::write(&file.0, "").unwrap();
    file.is_refused("is no image: that is a directory");
    // This image passes all checks and still can't boot.
    FakeImage::new("fake")
        .file("usr/lib/systemd/systemd")
        .file("usr/bin/dbus-daemon")
        .is_refused("did not start");
}

#[test]
fn invalid_option_values_are_refused() {
    let image = image();
    for (option, words) in [
        ("--timeout=0", "longer than nothing"),
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
    let name = format!("values-{}", std::process::id());
    let done = call(
        "nspawn-prepare",
        ["--name", &name, "--property=NoSuchProperty=1", &image],
    )
    .expect_error(1, "did not start");
    assert!(done.err().contains("NoSuchProperty"), "{}", done.describe());
    let done = call(
        "nspawn-prepare",
        ["--name", &name, "--bind=/no/such/source", &image],
    )
    .expect_error(1, "did not start");
    assert!(
        done.err().contains("/no/such/source"),
        "{}",
        done.describe()
    );
    assert_eq!(left_of(&name), "");
    call("nspawn-cleanup", [] as [&str; 0]).expect_error(1, "name a machine to remove");
    call("nspawn-cleanup", ["--all", "x"]).expect_error(1, "--all");
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
fn callers_other_than_root_are_refused() {
    let nobody = |program: &str, argument: &str| {
        let program = sh(&format!("command -v {program}")).expect(0).out();
        call(
            "setpriv",
            [
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
                program.trim(),
                argument,
            ],
        )
    };
    nobody("nspawn-prepare", &image()).expect_error(1, "only root");
    nobody("nspawn-cleanup", "some-machine").expect_error(1, "only root");
    nobody("nspawn-run", "some-machine").expect_error(125, "only root");
}

#[test]
fn missing_program_names_its_package() {
    let prepare = sh("command -v nspawn-prepare").expect(0).out();
    let mut command = Command::new(prepare.trim());
    command.arg(image()).env("PATH", "/nonexistent");
    finish(&mut command, b"").expect_error(1, "install the package systemd-container");
}

#[test]
fn foreign_machine_of_the_same_name_goes_on() {
    let name = format!("foreign-{}", std::process::id());
    let root = format!("/var/tmp/{name}");
    let start = format!(
        "mkdir -p {root}/usr {root}/upper {root}/work {root}/root && \
         systemd-run --quiet --collect --unit=e2e-{name} --property=Type=notify --property=Delegate=yes --property=PrivateMounts=yes \
         sh -c 'mount -t overlay -o lowerdir=/var/lib/machines/{image},upperdir={root}/upper,workdir={root}/work none {root}/root && \
         exec systemd-nspawn --quiet --keep-unit --machine={name} --directory={root}/root --notify-ready=yes --link-journal=no --boot'",
        image = image()
    );
    sh(&start).expect(0);
    let refused = call("nspawn-prepare", ["--name", &name, &image()]);
    let cleaned = call("nspawn-cleanup", [&name]);
    let alive = call("machinectl", ["show", "--property=State", "--value", &name]);
    sh(&format!(
        "systemctl kill --signal=KILL e2e-{name}; systemctl stop e2e-{name}; rm -rf {root}"
    ));
    refused.expect_error(1, "that these programs did not make");
    cleaned.expect(0);
    assert_eq!(alive.expect(0).out(), "running\n");
}

#[test]
fn file_in_place_of_a_state_directory_is_refused() {
    let name = format!("stray-{}", std::process::id());
    let path = format!("/run/nspawn-ci/{name}");
    fs::create_dir_all("/run/nspawn-ci").unwrap();
    fs::write(&path, "").unwrap();
    let (prepared, cleaned) = (
        call("nspawn-prepare", ["--name", &name, &image()]),
        call("nspawn-cleanup", [&name]),
    );
    fs::remove_file(&path).unwrap();
    prepared.expect_error(1, "is in the way; remove it");
    cleaned.expect_error(1, "is in the way; remove it");
}

#[test]
fn invalid_state_files_are_refused() {
    let name = format!("state-{}", std::process::id());
    let dir = format!("/run/nspawn-ci/{name}");
    fs::create_dir_all(&dir).unwrap();
    for (text, words) in [
        ("", "not a whole JSON document"),
        ("{\"version\":2,\"name\"", "not a whole JSON document"),
        ("no JSON", "not a whole JSON document"),
        ("[]", "it has no version"),
        (
            "{\"version\":99}",
            "a newer version of these programs made it (format 99",
        ),
        (
            "{\"version\":1}",
            "an older version of these programs made it (format 1",
        ),
        ("{\"version\":2}", "no valid \"start\""),
    ] {
        fs::write(format!("{dir}/state.json"), text).unwrap();
        call("nspawn-run", [&*name, "true"]).expect_error(125, words);
    }
    call("nspawn-cleanup", [&name]).expect(0);
    assert_eq!(left_of(&name), "");
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
        (
            &["--layer=tmpfs:120%"],
            "can't use 120%: a percentage is between 1% and 100%",
        ),
        (
            &["--layer-size=0%"],
            "can't use 0%: a percentage is between 1% and 100%",
        ),
        (&["--layer-size=-5G"], "-5G"),
        (&["--layer-size=1T1"], "1T1"),
        (&["--layer=tmpfs", "--layer-size=99T"], "99T is not between"),
        (&["--layer=snapshot:1G"], "snapshot:1G"),
        (
            &["--layer=snapshot", "--layer-size=1G"],
            "shares its file system, so --layer=snapshot has no size",
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
fn disk_image_is_refused_for_snapshot_or_if_corrupt() {
    let disk = FakeImage::new("disk");
    fs::remove_dir(&disk.0).unwrap();
    let file = FakeImage(disk.0.with_extension("raw"));
    fs::write(&file.0, "no file system").unwrap();
    let name = format!("disk-{}", std::process::id());
    let image = disk.0.file_name().unwrap();
    let prepare = |layer: &str| {
        call(
            "nspawn-prepare",
            ["--name".as_ref(), name.as_ref(), OsStr::new(layer), image],
        )
    };
    prepare("--layer=snapshot")
        .expect_error(1, "which --layer=snapshot can't copy; choose --layer=disk");
    let done = prepare("--layer=disk").expect_error(1, "did not start");
    assert!(
        done.err().contains("can't mount the disk image"),
        "{}",
        done.describe()
    );
    assert_eq!(left_of(&name), "");
}

/// Tests an image that is removed after the checks and before it is mounted.
#[test]
fn image_removed_before_its_mount_is_reported() {
    let image = FakeImage::new("vanishing")
        .file("usr/lib/systemd/systemd")
        .file("usr/bin/dbus-daemon");
    let (path, away) = (
        image.0.display().to_string(),
        FakeImage(image.0.with_extension("away")),
    );
    let name = format!("vanishing-{}", std::process::id());
    let move_away = format!("mv {path} {}", away.0.display());
    for init in ["systemd", "stub"] {
        let property = format!("--property=ExecStartPre=/bin/{move_away}");
        let option = format!("--init={init}");
        let reference = image.0.file_name().unwrap().to_str().unwrap();
        let done = call(
            "nspawn-prepare",
            ["--name", &name, &option, &property, reference],
        );
        sh(&format!("mv {} {path}", away.0.display())).expect(0);
        assert!(
            done.err().contains(&path) && done.err().contains("No such file"),
            "{}",
            done.describe()
        );
        done.expect_error(1, "did not start");
        assert_eq!(left_of(&name), "");
    }
    let reference = image.0.file_name().unwrap().to_str().unwrap();
    call(
        "nspawn-prepare",
        ["--name", &name, "--init=none", reference],
    )
    .expect(0);
    sh(&move_away).expect(0);
    for _ in 0..2 {
        let done = call("nspawn-run", [&*name, "true"]);
        assert!(
            done.err().contains(&path) && done.err().contains("No such file"),
            "{}",
            done.describe()
        );
        done.expect_error(125, "did not start");
    }
    call("nspawn-cleanup", [&name]).expect(0);
    assert_eq!(left_of(&name), "");
}
