//! The machine's own services fail while a command runs. When the command ends, its result is known
//! at once.

use std::time::Duration;

use nspawn_tests::BackgroundCommand;

use crate::suite::Suite;

/// Time limit for the result of a command that has ended.
const RESULT_LIMIT: Duration = Duration::from_secs(2);

/// Faults, and the shell commands that cause them in the machine.
const FAULTS: [(&str, &str); 6] = [
    (
        "the bus reloads",
        "busctl call org.freedesktop.DBus / org.freedesktop.DBus ReloadConfig",
    ),
    // systemd limits how often a unit may start, so the counter is reset.
    (
        "the bus restarts",
        "systemctl reset-failed dbus && systemctl restart dbus",
    ),
    (
        "the bus is killed",
        "systemctl kill --signal=KILL dbus; sleep 0.2",
    ),
    ("a package installs a bus policy", PACKAGE),
    ("systemd re-executes", "systemctl daemon-reexec"),
    (
        "systemd isolates a target",
        "systemctl isolate rescue.target; systemctl isolate multi-user.target",
    ),
];

const PACKAGE: &str = "cd /tmp && mkdir -p p/DEBIAN p/usr/share/dbus-1/system.d && \
    printf 'Package: fault\\nVersion: 1\\nArchitecture: all\\nMaintainer: x <x@example.com>\\nDescription: x\\n' >p/DEBIAN/control && \
    echo '<busconfig/>' >p/usr/share/dbus-1/system.d/fault.conf && \
    dpkg-deb --build p p.deb && dpkg --install p.deb && dpkg --purge fault";

pub fn rows(suite: &mut Suite) {
    let tries = suite.times(4, 50);
    for (name, fault) in FAULTS {
        let mut machine = None;
        suite.row(&format!("while a command runs, {name}"), tries, |number| {
            let machine = machine.get_or_insert_with(|| crate::suite::machine(&[]));
            let code = if number % 2 == 0 { 0 } else { 7 };
            let waiting = format!(
                "echo on; until [ -e /run/go ]; do sleep 0.02; done; rm /run/go; exit {code}"
            );
            let running = BackgroundCommand::start(machine, &waiting);
            machine
                .sh(&format!("{{ {fault}; }} >/dev/null 2>&1"))
                .expect(0);
            machine.run(["touch", "/run/go"]).expect(0);
            let (done, took) = running.wait_timed();
            let (status, stderr) = (done.status.code(), done.err());
            assert_eq!((status, &*stderr), (Some(code), ""));
            assert!(took < RESULT_LIMIT, "took {took:?}");
            if number + 1 == tries {
                nspawn_tests::call("nspawn-cleanup", [&machine.name]).expect(0);
            }
        });
    }
}
