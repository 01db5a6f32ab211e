//! The kernel, of which there is one: its modules, clocks, programs, and its end.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;
use nspawn_tests::sh;

use crate::probe::{Place, Probe};
use crate::suite::{Control, Field, Suite, machine, name};

/// Calls that change nothing where they are allowed.
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
        "listing and so reaching the kernel's BPF programs: bpf",
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

/// Sets the tick that there is.
const ADJUST: &str = r#"
my ($number, $state) = (shift, "\0" x 256);
syscall($number, $state);
substr($state, 0, 4) = pack("L", 0x4000);
verdict(syscall($number, $state));
"#;

/// One that only begins with `MAGIC`, which no program does.
const BINARY_FORMAT: &str = r#"
mkdir -p /tmp/formats
attempt mount -t binfmt_misc none /tmp/formats
for there in /proc/sys/fs/binfmt_misc /tmp/formats; do
    { echo ":$1:M::$1::/bin/true:F" >"$there/register"; } 2>/dev/null
done
grep -q binfmt_misc /proc/filesystems || not_here 'no binfmt_misc'
kept_out 'unless the host has it'
"#;

/// They are forgotten with their last mount.
const HOLD_FORMATS: &str =
    "mkdir -p /tmp/formats && mount -t binfmt_misc none /tmp/formats; echo on; sleep 15";

/// From the host's side: whether it is there, which also takes it away.
const HAS_FORMAT: &str = r#"
mkdir -p /tmp/formats
mount -t binfmt_misc none /tmp/formats 2>/dev/null
[ -e "/tmp/formats/$1" ] || kept_out 'not there'
echo -1 >"/tmp/formats/$1"
got_in there
"#;

pub fn rows(suite: &mut Suite, field: &Field) {
    for (name, number, arguments) in CALLS {
        suite.probe(
            name,
            Control::Host,
            &Probe::system_call(number, arguments),
            field,
        );
    }
    let adjust = Probe::perl(ADJUST, &[&libc::SYS_adjtimex.to_string()]);
    suite.probe(
        "changing the clock's speed: adjtimex",
        Control::Host,
        &adjust,
        field,
    );
    suite.row(
        "a binary format that the host's programs would be run by",
        || formats_stay(field),
    );
    suite.row("another name for the host", || the_hosts_name_stays(field));
    for force in ["--force", "--force --force"] {
        suite.row(
            &format!("rebooting the host: systemctl reboot {force}"),
            || the_host_stays_up(force),
        );
    }
}

fn formats_stay(field: &Field) -> Control {
    let name = name();
    let (register, has_format) = (
        Probe::shell(BINARY_FORMAT, &[&name]),
        Probe::shell(HAS_FORMAT, &[&name]),
    );
    let _held = Probe::shell(HOLD_FORMATS, &[]).start(Place::Host);
    register.is_kept_out(&field.bare);
    has_format.gets_in(Place::Host);
    register.is_kept_out(&field.machine);
    has_format.is_kept_out_of(Place::Host);
    Control::Bare
}

fn the_hosts_name_stays(field: &Field) -> Control {
    let hosts = || fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let before = hosts();
    let done = field
        .machine
        .sh("hostname evil && echo evil.example >/proc/sys/kernel/domainname; hostname");
    assert_eq!(done.out(), "evil\n", "{}", done.describe());
    assert_eq!(hosts(), before);
    Control::Nowhere
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
            "the machine did not even end itself"
        );
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(start(hosts()), before);
    Control::Nowhere
}
