//! Hosts without loop devices, and loop devices that another program has open.

use nspawn_tests::{Machine, call, image, left_of, sh};

use crate::cell::Cell;

/// Device nodes of the host that are moved away, and moved back on drop.
struct Hidden;

impl Hidden {
    fn new(which: &str) -> Self {
        sh(&format!(
            "mkdir /dev/e2e-hidden && mv {which} /dev/e2e-hidden/"
        ))
        .expect(0);
        Self
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        let _ = sh("mv /dev/e2e-hidden/* /dev/; rmdir /dev/e2e-hidden");
    }
}

/// The loop devices of a kernel are shared by all test hosts, so this test must not use them up.
#[test]
fn missing_loop_devices_are_reported() {
    let name = format!("no-loop-{}", std::process::id());
    let image = image();
    for (which, words) in [
        (
            "/dev/loop-control",
            "this host has no loop devices; see --layer-size=infinity",
        ),
        ("/dev/loop[0-9]*", "did not start"),
    ] {
        let hidden = Hidden::new(which);
        let [systemd, stub] = ["systemd", "stub"].map(|init| {
            Cell {
                init,
                layer: "disk",
                image: &image,
            }
            .prepare(&["--name", &name, "--layer-size=64M"])
        });
        // A machine without an init mounts its layer only during runs.
        let cell = Cell {
            init: "none",
            layer: "disk",
            image: &image,
        };
        let none = cell.prepare(&["--name", &name, "--layer-size=64M"]);
        let run = call("nspawn-run", [&*name, "true"]);
        let machine = Cell {
            init: "stub",
            layer: "tmpfs",
            image: &image,
        }
        .machine(&["--network=none"]);
        drop(hidden);
        for done in [systemd, stub] {
            let error = done.expect_error(1, words).err();
            assert!(error.contains("loop"), "{error}");
        }
        if none.code() == 0 {
            let error = run.expect_error(125, words).err();
            assert!(error.contains("--layer-size"), "{error}");
        } else {
            none.expect_error(1, words);
        }
        call("nspawn-cleanup", [&name]).expect(0);
        assert_eq!(left_of(&name), "");
        machine.run(["true"]).expect(0);
    }
}

/// Tests that cleanup waits until the layer's loop device is released. mount(8) opens the devices of
/// all machines for a moment.
#[test]
fn open_loop_device_is_released_before_cleanup_ends() {
    let machine = Machine::with(&["--init=stub", "--network=none"]);
    let disk = format!("/var/lib/nspawn-ci/machines/{}/disk", machine.name);
    let open = "exec 3<$(losetup --noheadings --output=NAME -j \"$1\"); sleep 1 >/dev/null 2>&1 &";
    call("sh", ["-c", open, "-", &disk]).expect(0);
    call("nspawn-cleanup", [&machine.name]).expect(0);
    assert_eq!(left_of(&machine.name), "");
}
