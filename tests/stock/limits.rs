//! Limits of a machine, as programs in the machine see them.

use std::path::Path;

use nspawn_tests::{Machine, image, sh};

const LIMITS: [&str; 4] = [
    "--network=none",
    "--property=MemoryMax=1G",
    "--property=CPUQuota=150%",
    "--property=TasksMax=500",
];

/// Prints the limits on one line, without a program that a machine could lack.
const SHOW: &str = "cd /sys/fs/cgroup && cat memory.max memory.swap.max cpu.max pids.max | xargs";

fn machine(options: &[&str]) -> Machine {
    Machine::with(&[&LIMITS[..], options].concat())
}

#[test]
fn limits_show_inside_for_each_init() {
    for init in ["--init=systemd", "--init=stub", "--init=none"] {
        let machine = machine(&[init, "--property=MemoryHigh=900M"]);
        for _ in 0..2 {
            let shown = machine.sh(SHOW).expect(0).out();
            assert_eq!(shown.trim(), "1073741824 0 150000 100000 500", "{init}");
        }
        assert_eq!(
            machine
                .sh("cat /sys/fs/cgroup/memory.high")
                .expect(0)
                .out()
                .trim(),
            "943718400",
            "{init}"
        );
    }
}

#[test]
fn default_limits_show_inside() {
    let machine = Machine::with(&["--network=none", "--init=stub"]);
    let unit = format!(
        "/sys/fs/cgroup/machine.slice/machine-ci.slice/nspawn-{}.service",
        machine.name
    );
    let files = "cat memory.max memory.high memory.swap.max cpu.max pids.max";
    let (inside, outside) = (
        machine.sh(&format!("cd /sys/fs/cgroup && {files}")),
        sh(&format!("cd {unit} && {files}")),
    );
    assert_eq!(inside.expect(0).out(), outside.expect(0).out());
}

#[test]
fn root_in_the_machine_raises_no_limit() {
    for users in ["pick", "no"] {
        let machine = machine(&["--init=stub", &format!("--private-users={users}")]);
        for file in ["memory.max", "cpu.max", "pids.max", "memory.swap.max"] {
            let done = machine.sh(&format!(
                "mount -o remount,rw /sys/fs/cgroup; echo max >/sys/fs/cgroup/{file}"
            ));
            assert_ne!(done.code(), 0, "{users} {file}: {}", done.describe());
        }
        assert_eq!(
            machine.sh(SHOW).expect(0).out().trim(),
            "1073741824 0 150000 100000 500",
            "{users}"
        );
    }
}

#[test]
fn java_sizes_itself_by_the_limits() {
    for init in ["--init=systemd", "--init=stub"] {
        let machine = machine(&[init, "--property=CPUQuota=100%"]);
        let flags = machine
            .sh("java -XX:+PrintFlagsFinal -version 2>/dev/null | grep -w MaxHeapSize")
            .expect(0)
            .out();
        // Java takes a quarter of the memory.
        assert!(flags.contains(&(256 << 20).to_string()), "{init}: {flags}");
        let system = machine
            .sh("java -XshowSettings:system -version 2>&1")
            .expect(0)
            .out();
        for line in ["Effective CPU Count: 1", "Memory Limit: 1.00G"] {
            assert!(system.contains(line), "{init}: no {line} in {system}");
        }
    }
}

#[test]
fn commands_have_the_limits_in_their_own_cgroup() {
    for init in ["--init=systemd", "--init=stub", "--init=none"] {
        let script =
            "cd /sys/fs/cgroup/$(cut -d: -f3 /proc/self/cgroup) && cat memory.max cpu.max | xargs";
        let shown = machine(&[init]).sh(script).expect(0).out();
        assert_eq!(shown.trim(), "1073741824 150000 100000", "{init}");
    }
}

/// A unit that the image has while its machine boots. It starts before all usual units.
const AT_BOOT: &str = "[Unit]\nDefaultDependencies=no\nBefore=sysinit.target\n[Service]\nType=oneshot\n\
    ExecStart=sh -c '/usr/bin/cat /sys/fs/cgroup/memory.max >/run/memory-at-boot'\n";

#[test]
fn units_of_the_image_see_the_limits_when_they_start() {
    let unit = Path::new("/var/lib/machines")
        .join(image())
        .join("etc/systemd/system/early.service");
    let wants = unit.with_file_name("sysinit.target.wants");
    std::fs::write(&unit, AT_BOOT).unwrap();
    std::fs::create_dir_all(&wants).unwrap();
    let link = wants.join("early.service");
    std::os::unix::fs::symlink("../early.service", &link).unwrap();
    let machine = machine(&[]);
    std::fs::remove_file(link).unwrap();
    std::fs::remove_file(unit).unwrap();
    assert_eq!(
        machine.sh("cat /run/memory-at-boot").expect(0).out().trim(),
        "1073741824"
    );
    // The machine's systemd allows a unit 15 % of the machine's tasks.
    assert_eq!(
        machine
            .sh("systemctl show --value --property=DefaultTasksMax")
            .expect(0)
            .out()
            .trim(),
        "75"
    );
}
