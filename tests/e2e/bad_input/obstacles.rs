//! Files, units and machines of others in the place of ours, and missing permissions.

use std::fs;
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
fn directory_in_which_no_file_can_be_created_is_named() {
    // The directory of the states is removed, and a mount keeps it in place.
    let line = format!(
        "mkdir -p /run/nspawn-ci /run/e2e-gone && mount --bind /run/e2e-gone /run/nspawn-ci && rmdir /run/e2e-gone && \
         exec timeout 30 nspawn-prepare --name=gone {}",
        image()
    );
    let done = call("unshare", ["--mount", "sh", "-c", &line]);
    done.expect_error(1, "/run/nspawn-ci/gone/lock");
}

/// A unit of the host with the name of a machine's unit, which runs until it is stopped.
struct HostUnit {
    machine: String,
    unit: String,
    files: Vec<String>,
}

impl HostUnit {
    /// Starts `unit`. `files` are the names and texts of its unit files.
    fn start(machine: &str, unit: &str, files: &[(&str, &str)]) -> Self {
        let unit = Self {
            machine: machine.to_owned(),
            unit: unit.to_owned(),
            files: files
                .iter()
                .map(|(name, _)| format!("/run/systemd/system/{name}"))
                .collect(),
        };
        for (path, (_, text)) in unit.files.iter().zip(files) {
            fs::write(path, text).unwrap();
        }
        sh(&format!(
            "systemctl daemon-reload && systemctl start {}",
            unit.unit
        ))
        .expect(0);
        unit
    }

    /// Checks that the name is refused, and that nothing stops the unit.
    fn check(&self) {
        let state = format!("/run/nspawn-ci/{}", self.machine);
        let prepare = |options: &[&str]| {
            let image = image();
            let all = [&["--name", &self.machine], options, &[&image]].concat();
            call("nspawn-prepare", all).expect_error(1, "this host has a unit")
        };
        for options in [&[][..], &["--replace"], &["--init=none", "--keep=failure"]] {
            prepare(options).expect_err(&self.unit);
            assert!(!fs::exists(&state).unwrap());
            self.check_running();
        }
        call("nspawn-cleanup", [&self.machine]).expect(0);
        self.check_running();
        // A half-made machine may have the name.
        for cleanup in [&self.machine, "--stale"] {
            fs::create_dir_all(&state).unwrap();
            fs::write(format!("{state}/state.json"), "{").unwrap();
            call("nspawn-cleanup", [cleanup]).expect(0);
            assert_eq!(fs::exists(&state).ok(), Some(false));
            self.check_running();
        }
    }

    fn check_running(&self) {
        let state = sh(&format!("systemctl is-active {}", self.unit)).out();
        assert_eq!(state, "active\n");
    }
}

impl Drop for HostUnit {
    fn drop(&mut self) {
        sh(&format!("systemctl stop {}", self.unit));
        self.files
            .iter()
            .for_each(|path| drop(fs::remove_file(path)));
        sh("systemctl daemon-reload");
    }
}

#[test]
fn unit_of_the_host_blocks_the_machine_name() {
    let name = format!("own-{}", std::process::id());
    let service = "[Service]\nExecStart=/bin/sleep 600\n";
    for prefix in ["nspawn", "pasta", "command"] {
        let unit = format!("{prefix}-{name}.service");
        HostUnit::start(&name, &unit, &[(&unit, service)]).check();
    }
    let timer = format!("nspawn-{name}.timer");
    let text = format!("[Timer]\nOnActiveSec=1h\nUnit=e2e-{name}.service\n");
    let other = format!("e2e-{name}.service");
    HostUnit::start(&name, &timer, &[(&timer, &*text), (&other, service)]).check();
}

#[test]
fn transient_unit_of_another_program_blocks_the_machine_name() {
    let name = format!("transient-{}", std::process::id());
    let unit = format!("nspawn-{name}.service");
    sh(&format!(
        "systemd-run --quiet --unit={unit} --collect sleep 600"
    ))
    .expect(0);
    HostUnit {
        machine: name,
        unit,
        files: Vec::new(),
    }
    .check();
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
    refused.expect_error(1, "another program has registered a machine of that name");
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
        ("", "it is not complete JSON"),
        ("{\"version\":3,\"name\"", "it is not complete JSON"),
        ("no JSON", "it is not complete JSON"),
        ("[]", "it has no version"),
        (
            "{\"version\":99}",
            "a newer version of these programs created the machine (format 99",
        ),
        (
            "{\"version\":2}",
            "an older version of these programs created the machine (format 2",
        ),
        ("{\"version\":3}", "it has no valid \"start\""),
    ] {
        fs::write(format!("{dir}/state.json"), text).unwrap();
        call("nspawn-run", [&*name, "true"]).expect_error(125, words);
    }
    call("nspawn-cleanup", [&name]).expect(0);
    assert_eq!(left_of(&name), "");
}

#[test]
fn callers_other_than_root_are_refused() {
    let run_as_nobody = |program: &str, argument: &str| {
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
    run_as_nobody("nspawn-prepare", &image()).expect_error(1, "only root");
    run_as_nobody("nspawn-cleanup", "some-machine").expect_error(1, "only root");
    run_as_nobody("nspawn-run", "some-machine").expect_error(125, "only root");
}

#[test]
fn missing_program_names_its_package() {
    let prepare = sh("command -v nspawn-prepare").expect(0).out();
    let mut command = Command::new(prepare.trim());
    command.arg(image()).env("PATH", "/nonexistent");
    finish(&mut command, b"").expect_error(1, "install the package systemd-container");
}
