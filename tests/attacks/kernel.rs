//! The kernel, which the host and all machines share: its modules, clocks and programs, and a
//! reboot.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;
use nspawn_tests::sh;

use crate::probe::{Place, Probe};
use crate::suite::{Control, Fixture, Suite, machine, name};

/// System calls that need privileges. With them, these arguments change nothing.
const CALLS: [(&str, libc::c_long, &str); 11] = [
    (
        "loading a module: init_module",
        libc::SYS_init_module,
        r#""", 0, """#,
    ),
    (
        "loading a module from a file: finit_module",
        libc::SYS_finit_module,
        r#"-1, "", 0"#,
    ),
    (
        "unloading a module: delete_module",
        libc::SYS_delete_module,
        r#""nspawn_attack", 2048"#,
    ),
    (
        "loading another kernel: kexec_load",
        libc::SYS_kexec_load,
        "0, 0, 0, 0",
    ),
    (
        "setting the clock: settimeofday",
        libc::SYS_settimeofday,
        r#"0, pack("l2", 0, 0)"#,
    ),
    (
        "reading the kernel's log: syslog",
        libc::SYS_syslog,
        r#"3, "x" x 4096, 4096"#,
    ),
    (
        "listing the kernel's BPF programs: bpf",
        libc::SYS_bpf,
        r#"11, "\0" x 16, 16"#,
    ),
    (
        "counting events of all processes: perf_event_open",
        libc::SYS_perf_event_open,
        r#""\0" x 128, -1, 0, -1, 0"#,
    ),
    (
        "accounting of all processes: acct",
        libc::SYS_acct,
        r#""/nonexistent""#,
    ),
    (
        "swapping to a file: swapon",
        libc::SYS_swapon,
        r#""/nonexistent", 0"#,
    ),
    (
        "quotas of file systems: quotactl",
        libc::SYS_quotactl,
        r#"0x80000100, "/nonexistent", 0, 0"#,
    ),
];

/// Sets the clock's tick to its current value.
const ADJUST: &str = r#"
my ($number, $state) = (shift, "\0" x 256);
syscall($number, $state);
substr($state, 0, 4) = pack("L", 0x4000);
verdict(syscall($number, $state));
"#;

/// Registers a binary format whose magic bytes no program has.
const BINARY_FORMAT: &str = r#"
mkdir -p /tmp/formats
attempt mount -t binfmt_misc none /tmp/formats
for there in /proc/sys/fs/binfmt_misc /tmp/formats; do
    { echo ":$1:M::$1::/bin/true:F" >"$there/register"; } 2>/dev/null
done
grep -q binfmt_misc /proc/filesystems || unsupported 'no binfmt_misc'
kept_out 'unless the host has it'
"#;

/// Keeps binfmt_misc mounted, because the kernel forgets the formats with the last mount.
const HOLD_FORMATS: &str =
    "mkdir -p /tmp/formats && mount -t binfmt_misc none /tmp/formats; echo on; sleep 15";

/// Looks for the format on the host, and removes it.
const HAS_FORMAT: &str = r#"
mkdir -p /tmp/formats
mount -t binfmt_misc none /tmp/formats 2>/dev/null
[ -e "/tmp/formats/$1" ] || kept_out 'not there'
echo -1 >"/tmp/formats/$1"
got_in there
"#;

pub fn rows(suite: &mut Suite, fixture: &Fixture) {
    for (name, number, arguments) in CALLS {
        suite.probe(
            name,
            Control::Host,
            &Probe::system_call(number, arguments),
            fixture,
        );
    }
    let adjust = Probe::perl(ADJUST, &[&libc::SYS_adjtimex.to_string()]);
    suite.probe(
        "changing the clock's speed: adjtimex",
        Control::Host,
        &adjust,
        fixture,
    );
    suite.row("adding a binary format to the host", || {
        no_format_appears(fixture)
    });
    suite.row("changing the host's name", || {
        the_host_keeps_its_name(fixture)
    });
    for force in ["--force", "--force --force"] {
        suite.row(
            &format!("rebooting the host: systemctl reboot {force}"),
            || the_host_stays_up(force),
        );
    }
}

fn no_format_appears(fixture: &Fixture) -> Control {
    let name = name();
    let (register, has_format) = (
        Probe::shell(BINARY_FORMAT, &[&name]),
        Probe::shell(HAS_FORMAT, &[&name]),
    );
    let _held = Probe::shell(HOLD_FORMATS, &[]).start(Place::Host);
    register.is_kept_out(&fixture.unconfined);
    has_format.gets_in(Place::Host);
    register.is_kept_out(&fixture.attacker);
    has_format.is_kept_out_of(Place::Host);
    Control::Unconfined
}

fn the_host_keeps_its_name(fixture: &Fixture) -> Control {
    let hosts = || fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let before = hosts();
    let done = fixture
        .attacker
        .sh("hostname evil && echo evil.example >/proc/sys/kernel/domainname; hostname");
    assert_eq!(done.out(), "evil\n", "{}", done.describe());
    assert_eq!(hosts(), before);
    Control::Absent
}

fn the_host_stays_up(force: &str) -> Control {
    let machine = machine(&[]);
    let hosts = || {
        [
            fs::read_to_string("/proc/1/stat"),
            fs::read_to_string("/proc/sys/kernel/random/boot_id"),
        ]
    };
    let start = |texts: [std::io::Result<String>; 2]| {
        let [stat, boot] = texts.map(Result::unwrap);
        (
            stat.rsplit(") ")
                .next()
                .and_then(|rest| rest.split(' ').nth(19).map(str::to_owned)),
            boot,
        )
    };
    let before = start(hosts());
    machine
        .sh(&format!("systemctl reboot {force}; sleep 60"))
        .expect(125);
    let unit = format!("systemctl is-active --quiet nspawn-{}", machine.name);
    let deadline = Instant::now() + Duration::from_secs(10);
    while sh(&unit).code() == 0 {
        assert!(
            Instant::now() < deadline,
            "the machine does not reboot, so the attack proves nothing"
        );
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(start(hosts()), before);
    Control::Absent
}
