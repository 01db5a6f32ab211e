//! The Debian package: installed, upgraded, removed and purged.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use nspawn_tests::{Done, call, image, left_of, sh, wait_until};

/// Version of the second package that `scripts/test` builds, which is later than our own version.
const NEXT: &str = concat!(env!("CARGO_PKG_VERSION"), "+next");
/// Search path that finds the installed programs, and not those of the test host.
const PATH: &str = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";
const NAME: &str = "e2e-package";

/// The installed package, which is purged at the end of the test.
struct Package;

impl Drop for Package {
    fn drop(&mut self) {
        let _ = sh("nspawn-cleanup --all; dpkg --purge nspawn-ci; rm -rf /etc/nspawn-ci");
    }
}

fn package(version: &str) -> PathBuf {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target");
    let architecture = call("dpkg", ["--print-architecture"]).expect(0).out();
    let file = target.join(format!(
        "nspawn-ci_{version}_{}.deb",
        architecture.trim_end()
    ));
    assert!(
        file.exists(),
        "{} is not there; run scripts/package --version {version}",
        file.display()
    );
    file
}

fn install(version: &str) {
    let file = package(version);
    call(
        "dpkg",
        ["--install", "--force-unsafe-io", file.to_str().unwrap()],
    )
    .expect(0);
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target/release/nspawn-run");
    let same = call("cmp", [built.to_str().unwrap(), "/usr/bin/nspawn-run"]);
    assert!(
        same.status.success(),
        "{} has other programs than target/release; run scripts/package again",
        file.display()
    );
}

/// Runs an installed program, as a user's shell would find it.
fn call_installed(program: &str, arguments: &[&str]) -> Done {
    call("env", [PATH, program].iter().chain(arguments))
}

fn state_of_units(verb: &str) -> String {
    let units =
        ["stale.service", "stale.timer", "update.timer"].map(|unit| format!("nspawn-ci-{unit}"));
    call("systemctl", [verb.to_owned()].into_iter().chain(units))
        .out()
        .replace('\n', " ")
}

/// Returns the start time of the machine's PID 1, which changes if the machine is started again.
fn start_time() -> String {
    call("nspawn-run", [NAME, "stat", "--format=%Y", "/proc/1"])
        .expect(0)
        .out()
}

/// Lists all files and units with the package's name, except the programs of the test host.
fn named_files() -> String {
    sh("find / -xdev -path /proc -prune -o -path /sys -prune -o -path /dev -prune -o -name '*nspawn-ci*' -print; \
        ls /usr/bin/nspawn-* 2>/dev/null; systemctl list-unit-files --no-legend 'nspawn-ci*'")
    .out()
}

fn check_installed(updates: &str) {
    call("dpkg", ["--verify", "nspawn-ci"]).expect(0);
    assert_eq!(
        state_of_units("is-enabled"),
        format!("enabled enabled {updates} ")
    );
    let active = if updates == "enabled" {
        "active"
    } else {
        "inactive"
    };
    assert_eq!(
        state_of_units("is-active"),
        format!("inactive active {active} ")
    );
    for program in [
        "nspawn-prepare",
        "nspawn-run",
        "nspawn-cleanup",
        "nspawn-exec",
        "nspawn-image",
        "nspawn-check-host",
        "nspawn-github-actions-hook",
        "autopkgtest-virt-nspawn-ci",
    ] {
        call_installed(program, &["--help"]).expect(0);
        assert!(
            fs::exists(format!("/usr/share/man/man1/{program}.1.gz")).unwrap(),
            "{program}"
        );
    }
}

/// Checks that the example files work, mounted over the host's /etc/nspawn-ci.
fn check_examples() {
    let line = format!(
        "mkdir -p /etc/nspawn-ci && mount --bind /usr/share/doc/nspawn-ci/examples /etc/nspawn-ci && \
         nspawn-prepare --dry-run --max-machines=999 {0} && mount --bind /var/lib/machines/{0} /var/lib/machines/web && \
         nspawn-prepare --dry-run --max-machines=999 web && nspawn-run --help",
        image()
    );
    fs::create_dir("/var/lib/machines/web").unwrap();
    let done = call("env", [PATH, "unshare", "--mount", "sh", "-c", &line]);
    fs::remove_dir("/var/lib/machines/web").unwrap();
    done.expect_out("MemoryMax=8G");
    done.expect(0);
}

/// Machines that exist during an upgrade, beside the one whose boot time is compared.
///
/// There is one machine with each `--init`, a running command, a machine that is being created, and
/// a standby machine.
struct OtherMachines {
    names: Vec<String>,
    running: Child,
    making: Child,
    standby_names: String,
}

impl OtherMachines {
    const MODES: [&str; 3] = ["--init=systemd", "--init=stub", "--init=none"];
    const MAKING: &str = "e2e-package-making";

    fn begin() -> Self {
        let names: Vec<_> = (1..)
            .zip(Self::MODES)
            .map(|(number, _)| format!("{NAME}-{number}"))
            .collect();
        for (name, mode) in names.iter().zip(Self::MODES) {
            call_installed("nspawn-prepare", &["--name", name, mode, &image()]).expect(0);
        }
        resize_pool(1);
        let standby_names = standby_names();
        let spawn = |words: &[&str]| Command::new("env").arg(PATH).args(words).spawn().unwrap();
        let running = spawn(&[
            "nspawn-run",
            &names[1],
            "sh",
            "-c",
            "until test -e /root/go; do sleep 0.1; done; exit 7",
        ]);
        let hang = "--property=ExecStartPre=/bin/sh -c 'until test -e /run/e2e-package-go; do sleep 0.1; done'";
        let making = spawn(&[
            "nspawn-prepare",
            "--name",
            Self::MAKING,
            "--network=none",
            hang,
            &image(),
        ]);
        wait_until("the machine is being made", Duration::from_secs(20), || {
            fs::exists(format!(
                "/sys/fs/cgroup/machine.slice/machine-ci.slice/nspawn-{}.service",
                Self::MAKING
            ))
            .unwrap()
        });
        Self {
            names,
            running,
            making,
            standby_names,
        }
    }

    /// Checks that all machines go on after an upgrade.
    ///
    /// The later version uses and removes machines of the earlier version.
    fn check(mut self) {
        fs::write("/run/e2e-package-go", "").unwrap();
        assert!(self.making.wait().unwrap().success());
        fs::remove_file("/run/e2e-package-go").unwrap();
        call_installed("nspawn-run", &[&self.names[1], "touch", "/root/go"]).expect(0);
        assert_eq!(self.running.wait().unwrap().code(), Some(7));
        let all: Vec<_> = self
            .names
            .iter()
            .map(|name| &**name)
            .chain([Self::MAKING])
            .collect();
        for name in &all {
            call_installed("nspawn-run", &[name, "sh", "-c", "exit 3"]).expect(3);
        }
        call_installed("nspawn-cleanup", &all).expect(0);
        // The prepare that was under way had the pool refilled, by the later version.
        wait_until("the pool is refilled", Duration::from_secs(60), || {
            let names = standby_names();
            !names.is_empty() && names != self.standby_names
        });
        resize_pool(0);
        assert_eq!(
            all.iter().map(|name| left_of(name)).collect::<String>() + &left_of("standby-"),
            ""
        );
    }
}

fn resize_pool(count: u32) {
    call_installed(
        "nspawn-prepare",
        &[
            &format!("--standby={count}"),
            "--init=stub",
            "--network=none",
            &image(),
        ],
    )
    .expect(0);
}

fn standby_names() -> String {
    sh("cd /run/nspawn-ci && for name in standby-*; do test ! -e $name/specification || echo $name; done")
        .out()
}

/// Checks that an upgrade keeps the enabled timers and the running machine.
fn check_upgrade(started: &str) {
    call("systemctl", ["enable", "--now", "nspawn-ci-update.timer"]).expect(0);
    let others = OtherMachines::begin();
    install(NEXT);
    others.check();
    assert_eq!(
        call(
            "dpkg-query",
            ["--show", "--showformat=${Version}", "nspawn-ci"]
        )
        .out(),
        NEXT
    );
    check_installed("enabled");
    call_installed("nspawn-run", &[NAME, "true"]).expect(0);
    assert_eq!(start_time(), started);
}

fn check_removal_under_a_machine(started: &str) {
    let removed = call("dpkg", ["--remove", "nspawn-ci"]).expect(0);
    let errors = removed.err();
    let machines = errors.lines().find(|line| line.contains("still run"));
    assert!(
        machines.is_some_and(|line| line.contains(&format!(" nspawn-{NAME}"))),
        "{}",
        removed.describe()
    );
    assert_eq!(state_of_units("is-active"), "inactive inactive inactive ");
    let purged = call("dpkg", ["--purge", "nspawn-ci"]).expect(0);
    purged.expect_err("machines still run");
    assert_eq!(start_time(), started);
    call("nspawn-cleanup", [NAME]).expect(0);
}

fn check_purge() {
    install(NEXT);
    // This machine waits for its next command, and has no process.
    call_installed("nspawn-prepare", &["--name", NAME, "--init=none", &image()]).expect(0);
    call_installed("nspawn-run", &[NAME, "true"]).expect(0);
    let purged = call("dpkg", ["--purge", "nspawn-ci"]).expect(0);
    assert!(!purged.err().contains("left"), "{}", purged.describe());
    for directory in [
        "/run/nspawn-ci",
        "/var/lib/nspawn-ci",
        "/var/cache/nspawn-ci",
    ] {
        assert!(!fs::exists(directory).unwrap(), "{directory} still exists");
    }
    assert_eq!(left_of(NAME), "");
    assert!(fs::exists(format!("/var/lib/machines/{}/etc", image())).unwrap());
}

#[test]
fn package_is_installed_upgraded_and_purged() {
    let before = named_files();
    let _package = Package;
    install(env!("CARGO_PKG_VERSION"));
    check_installed("disabled");
    check_examples();
    let prepared = call_installed("nspawn-prepare", &["--name", NAME, &image()]).expect(0);
    assert_eq!(prepared.out(), format!("{NAME}\n"));
    let started = start_time();
    check_upgrade(&started);
    let admin_file = "/etc/nspawn-ci/images/own.args";
    fs::create_dir_all("/etc/nspawn-ci/images").unwrap();
    fs::write(admin_file, "--property=TasksMax=100\n").unwrap();
    check_removal_under_a_machine(&started);
    check_purge();
    assert_eq!(
        fs::read_to_string(admin_file).unwrap(),
        "--property=TasksMax=100\n"
    );
    fs::remove_dir_all("/etc/nspawn-ci").unwrap();
    let after = named_files();
    let new: Vec<_> = after
        .lines()
        .filter(|line| !before.lines().any(|known| known == *line))
        .collect();
    assert!(new.is_empty(), "{new:?}");
}
