//! Isolation of machines: layer size, privileges, files of the host, and what a job may change.

use nspawn_tests::gitlab_runner::{Job, Outcome, Report, Runner};
use nspawn_tests::{Machine, call, image, sh};

#[test]
fn layer_size_limits_the_layer() {
    let machine = Machine::with(&["--layer-size=64M"]);
    let done = machine.sh("head -c 100M /dev/zero >/root/big").expect(1);
    done.expect_err("No space left");
    machine.sh("rm /root/big; echo more >/root/small").expect(0);
    assert!((50..=64).contains(&size_of_root(&machine)));
}

/// Returns the size of the root file system in MiB.
fn size_of_root(machine: &Machine) -> u64 {
    let size = machine
        .sh("df --output=size -k / | tail -n 1")
        .expect(0)
        .out();
    size.trim().parse::<u64>().unwrap() >> 10
}

/// Without a user namespace, root in the machine could read the other loop devices.
#[test]
fn layer_size_without_a_user_namespace_is_refused() {
    call(
        "nspawn-prepare",
        ["--private-users=no", "--layer-size=64M", &image()],
    )
    .expect_error(1, "needs a user namespace");
}

#[test]
fn layer_of_infinite_size_has_the_size_of_the_host_file_system() {
    let unbounded = Machine::with(&["--layer-size=infinity"]);
    let host = sh("df --output=size -k /var/lib | tail -n 1")
        .expect(0)
        .out();
    assert_eq!(
        size_of_root(&unbounded),
        host.trim().parse::<u64>().unwrap() >> 10
    );
}

#[test]
fn nesting_allows_containers() {
    let machine = Machine::with(&["--nesting"]);
    for directory in ["containers", "docker"] {
        let mount = format!(
            "cd /var/lib/{directory} && mkdir lower upper work root && touch lower/file && \
             mount -t overlay none -o lowerdir=lower,upperdir=upper,workdir=work root && \
             test -e root/file && touch root/new && test -e upper/new"
        );
        machine.sh(&mount).expect(0);
    }
    machine
        .sh("unshare --user --map-root-user --pid --fork --mount-proc true")
        .expect(0);
}

/// `bwrap --disable-userns` writes to this setting in the namespaces that it creates.
#[test]
fn settings_of_the_own_user_namespace_are_writable() {
    let lower = "unshare --user --map-root-user sh -c 'echo 3 >/proc/sys/user/max_user_namespaces && \
                 cat /proc/sys/user/max_user_namespaces'";
    for init in ["--init=systemd", "--init=stub", "--init=none"] {
        let machine = Machine::with(&[init]);
        assert_eq!(machine.sh(lower).expect(0).out(), "3\n", "{init}");
    }
    let options = ["--private-users=no", "--layer-size=infinity"];
    let machine = Machine::with(&options);
    machine
        .sh("! echo 3 >/proc/sys/user/max_user_namespaces")
        .expect(0);
}

#[test]
fn privileges_can_be_dropped() {
    let bounds = |machine: &Machine| {
        machine
            .sh("grep -e CapBnd -e NoNewPrivs /proc/1/status")
            .expect(0)
            .out()
    };
    let usual = bounds(&Machine::new());
    let changed = bounds(&Machine::with(&[
        "--drop-capability=CAP_MKNOD",
        "--no-new-privileges",
    ]));
    assert!(
        usual.contains("NoNewPrivs:\t0") && changed.contains("NoNewPrivs:\t1"),
        "{usual}{changed}"
    );
    let capabilities =
        |text: &str| u64::from_str_radix(text.split_whitespace().nth(1).unwrap_or_default(), 16);
    let bounding_set = |text: &str| {
        capabilities(
            text.lines()
                .find(|line| line.starts_with("CapBnd"))
                .unwrap(),
        )
        .unwrap()
    };
    assert_eq!(bounding_set(&usual) & !bounding_set(&changed), 1 << 27);
}

/// Runs a job with this variable, on a runner with a layer of 200 MiB.
fn run_with_limit(name: &str, value: &str) -> Report {
    let job = Job::new(&image())
        .variable(name, value)
        .script(&["df -k / | tail -n 1", "ls /sys/class/net"]);
    Runner::default()
        .prepare_args(&["--layer-size=200M"])
        .run(&job)
}

#[test]
fn job_can_lower_its_limits() {
    let report = run_with_limit("NSPAWN_JOB_LAYER_SIZE", "64M").expect(&Outcome::Success);
    let size: u64 = report
        .stage("build_script")
        .text()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    assert!(size < 70 << 10, "{size}");
    let report = run_with_limit("NSPAWN_JOB_NETWORK", "none").expect(&Outcome::Success);
    assert!(
        report.stage("build_script").text().ends_with("\nlo\n"),
        "{}",
        report.describe()
    );
}

#[test]
fn job_can_not_raise_its_limits() {
    for (name, value) in [
        ("NSPAWN_JOB_LAYER_SIZE", "1G"),
        ("NSPAWN_JOB_MEMORY_MAX", "100T"),
        ("NSPAWN_JOB_NETWORK", "host"),
    ] {
        let report = run_with_limit(name, value);
        report.expect_log(&format!("the job's {name}={value}"));
        let _ = report.expect(&Outcome::ScriptFailure(1));
    }
}

#[test]
fn map_image_replaces_the_image_of_a_job() {
    let map = format!("--map-image=docker.example/*/ruby:3.*={}", image());
    let runner = |options: &[&str]| Runner::default().prepare_args(&[&[&*map], options].concat());
    let job = || Job::new("docker.example/tools/ruby:3.4").script(&["true"]);
    let _ = runner(&[]).run(&job()).expect(&Outcome::Success);
    let _ = runner(&[&format!("--allow-image={}", image())])
        .run(&job())
        .expect(&Outcome::Success);
    // --allow-image applies to the image after the mapping.
    let _ = runner(&["--allow-image=docker*"])
        .run(&job())
        .expect(&Outcome::ScriptFailure(1));
    let _ = runner(&[])
        .run(&Job::new("docker.example/tools/ruby:2.7").script(&["true"]))
        .expect(&Outcome::ScriptFailure(1));
}

#[test]
fn map_image_without_an_image_is_refused() {
    call("nspawn-prepare", ["--map-image=x", &image()]).expect_error(1, "it needs GLOB=IMAGE");
}

#[test]
fn allow_image_restricts_the_images_of_jobs() {
    let runner = |glob: &str| Runner::default().prepare_args(&[&format!("--allow-image={glob}")]);
    let job = || Job::new(&image()).script(&["true"]);
    runner(&format!("{}*", &image()[..3]))
        .run(&job())
        .expect(&Outcome::Success);
    let report = runner("other-*").run(&job());
    report.expect_log("is not allowed on this runner; allowed images are other-*");
    report.expect(&Outcome::ScriptFailure(1));
}

#[test]
fn state_and_layers_are_accessible_to_root_only() {
    let machine = Machine::new();
    for path in [
        "/run/nspawn-ci",
        "/var/lib/nspawn-ci/machines",
        &format!("/var/lib/nspawn-ci/machines/{}/disk", machine.name),
    ] {
        let mode = sh(&format!("stat -c %a {path}")).expect(0).out();
        assert!(mode.trim_end().ends_with("00"), "{path}: {mode}");
    }
    let command = format!(
        "setpriv --reuid=65534 --clear-groups cat /run/nspawn-ci/{}/state.json",
        machine.name
    );
    assert_ne!(sh(&command).code(), 0);
}

#[test]
fn allowed_device_of_the_host_is_bound() {
    let machine = Machine::with(&["--property=DeviceAllow=/dev/fuse rwm", "--bind=/dev/fuse"]);
    machine.sh("test -c /dev/fuse").expect(0);
}
