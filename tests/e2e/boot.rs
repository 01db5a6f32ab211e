//! The shortened boot of machines.
//!
//! The programs mask units to make the boot short. Units that the image enables still start, and
//! services that are activated on demand still start on their first use.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use nspawn_tests::{Machine, call, image, sh};

/// A copy of the test host's image, which is removed at the end of its test.
struct Copy {
    name: String,
}

impl Copy {
    fn new(name: &str) -> Self {
        let name = format!("{name}-{}", std::process::id());
        sh(&format!(
            "cp --archive /var/lib/machines/{}/. /var/lib/machines/{name}",
            image()
        ))
        .expect(0);
        Self { name }
    }

    fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/var/lib/machines/{}/{path}", self.name))
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Adds a unit and a `.wants/` symlink of `target` to it.
    fn enable(&self, directory: &str, unit: &str, target: &str, text: &str) {
        self.write(&format!("{directory}/{unit}"), text);
        let wants = self.path(&format!("{directory}/{target}.wants"));
        fs::create_dir_all(&wants).unwrap();
        symlink(format!("../{unit}"), wants.join(unit)).unwrap();
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = sh(&format!("rm -rf /var/lib/machines/{}", self.name));
    }
}

fn wait_script(condition: &str) -> String {
    format!("timeout 30 sh -c 'until {condition}; do sleep 0.05; done'")
}

/// Returns a service that creates a file.
fn touch(file: &str) -> String {
    format!("[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=touch {file}\n")
}

fn enable_system_units(copy: &Copy) {
    copy.enable(
        "etc/systemd/system",
        "own.service",
        "multi-user.target",
        &touch("/run/own"),
    );
    copy.write("etc/systemd/system/timed.service", &touch("/run/timed"));
    let timer = "[Timer]\nOnActiveSec=1\nAccuracySec=1ms\n";
    copy.enable("etc/systemd/system", "timed.timer", "timers.target", timer);
    copy.write(
        "etc/tmpfiles.d/own.conf",
        "d /run/made 0750 root root\nL /dev/made - - - - /dev/null\n",
    );
    copy.write("etc/sysctl.d/own.conf", "net.ipv4.ip_default_ttl=77\n");
}

/// Adds a user whose service manager starts at boot, with a service.
fn enable_user_unit(copy: &Copy) {
    sh(&format!(
        "chroot {} useradd --create-home ann",
        copy.path("").display()
    ))
    .expect(0);
    copy.write("var/lib/systemd/linger/ann", "");
    copy.enable(
        "home/ann/.config/systemd/user",
        "own.service",
        "default.target",
        &touch("/home/ann/own"),
    );
    sh(&format!(
        "chroot {} chown -R ann: /home/ann",
        copy.path("").display()
    ))
    .expect(0);
}

#[test]
fn units_enabled_in_the_image_start() {
    let copy = Copy::new("enabled");
    enable_system_units(&copy);
    enable_user_unit(&copy);
    let machine = Machine::of(&copy.name, &[]);
    check_system_units(&machine);
    check_user_unit(&machine);
}

fn check_system_units(machine: &Machine) {
    // A machine is ready only once its boot has finished.
    assert_eq!(
        machine
            .run(["systemctl", "is-system-running"])
            .expect(0)
            .out(),
        "running\n"
    );
    machine
        .sh("test -e /run/own && systemctl is-active own.service timed.timer")
        .expect(0);
    machine
        .sh("test -d /run/made && test $(readlink /dev/made) = /dev/null")
        .expect(0);
    assert_eq!(
        machine
            .run(["cat", "/proc/sys/net/ipv4/ip_default_ttl"])
            .expect(0)
            .out(),
        "77\n"
    );
    machine.sh(&wait_script("test -e /run/timed")).expect(0);
}

fn check_user_unit(machine: &Machine) {
    machine.sh(&wait_script("test -e /home/ann/own")).expect(0);
    assert_eq!(
        machine
            .run(["loginctl", "show-user", "ann", "--property=Linger"])
            .expect(0)
            .out(),
        "Linger=yes\n"
    );
    let query = "runuser -u ann -- env XDG_RUNTIME_DIR=/run/user/$(id -u ann) systemctl --user is-active own.service";
    assert_eq!(machine.sh(query).expect(0).out(), "active\n");
}

#[test]
fn dbus_and_logind_start_on_first_use() {
    let machine = Machine::new();
    let active = || {
        machine.run([
            "systemctl",
            "is-active",
            "dbus.service",
            "systemd-logind.service",
        ])
    };
    assert_eq!(active().out(), "inactive\ninactive\n");
    machine.run(["loginctl", "list-users"]).expect(0);
    assert_eq!(active().expect(0).out(), "active\nactive\n");
    machine
        .sh("hostnamectl && useradd --create-home bob && test ! -e /run/nologin")
        .expect(0);
    // A login session has its own service manager.
    let session = machine.run([
        "su",
        "--login",
        "bob",
        "--command",
        "loginctl show-user bob; systemctl --user is-system-running",
    ]);
    let session = session.expect(0).out();
    assert!(
        session.contains("State=active") && session.ends_with("running\n"),
        "{session}"
    );
    machine
        .sh("logger --tag=e2e hello && journalctl --sync && journalctl --quiet --identifier=e2e | grep hello")
        .expect(0);
}

#[test]
fn poweroff_works_before_the_first_use_of_logind() {
    let machine = Machine::new();
    machine
        .sh("systemctl poweroff 2>/dev/null; sleep 60")
        .expect_error(125, "it was shut down");
}

#[test]
fn system_call_filter_of_a_service_applies() {
    let machine = Machine::new();
    let filtered = "systemd-run --quiet --wait --pipe --property=SystemCallFilter=~sethostname";
    let done = machine
        .sh(&format!("{filtered} sh -c 'hostname elsewhere; echo $?'"))
        .expect(0);
    assert_eq!(done.out(), "159\n", "{}", done.describe());
}

#[test]
fn masked_units_and_units_beyond_the_boot_target_do_not_start() {
    let machine = Machine::with(&[
        "--mask=systemd-tmpfiles-clean.timer",
        "--boot-target=basic.target",
    ]);
    assert_eq!(
        machine
            .run([
                "systemctl",
                "is-active",
                "multi-user.target",
                "basic.target"
            ])
            .out(),
        "inactive\nactive\n"
    );
    let state = machine.run([
        "systemctl",
        "show",
        "--property=LoadState",
        "systemd-tmpfiles-clean.timer",
    ]);
    assert_eq!(state.expect(0).out(), "LoadState=masked\n");
}

#[test]
fn boot_target_beyond_the_default_starts() {
    let machine = Machine::with(&["--boot-target=graphical.target"]);
    machine
        .run(["systemctl", "is-active", "graphical.target"])
        .expect(0);
}

#[test]
fn invalid_masks_are_refused() {
    call("nspawn-prepare", ["--mask=nonsense", &image()])
        .expect_error(1, "it needs the name of a unit");
    call(
        "nspawn-prepare",
        ["--mask=a.service", "--init=stub", &image()],
    )
    .expect_error(1, "it needs systemd in the machine");
}

#[cfg(target_arch = "x86_64")]
#[test]
fn booted_machine_has_the_architecture_of_the_option() {
    let machine = Machine::with(&["--personality=x86"]);
    assert_eq!(machine.run(["uname", "-m"]).expect(0).out(), "i686\n");
    machine
        .sh("systemd-run --quiet --wait --pipe uname -m | grep -x i686 && systemctl is-system-running")
        .expect(0);
}
