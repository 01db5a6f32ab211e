//! The transient unit that is a machine.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::Duration;

use crate::machine::name::MachineName;
use crate::machine::paths;
use crate::machine::paths::SLICE;

/// What the unit of every machine has, and why. Users override by `--property`, which comes later.
const PROPERTIES: [&str; 10] = [
    "KillMode=mixed",    // a stop asks the machine's PID 1, then kills all that is left
    "Delegate=yes",      // the machine's systemd makes cgroups below the unit's
    "PrivateMounts=yes", // the machine's root is mounted where the host can't see it
    "DevicePolicy=closed", // null, zero, full, random, urandom, tty, ptmx, and these two:
    "DeviceAllow=/dev/net/tun rwm", // as in systemd-nspawn@.service
    "DeviceAllow=char-pts rw", // the machine's console
    "RestrictAddressFamilies=~AF_VSOCK", // of no namespace: it reaches what runs a host that is a virtual machine
    "TimeoutStopSec=10s",                // a stop is asked for when nobody waits for an orderly end
    "OOMPolicy=continue",                // a process killed for memory is the job's matter
    "IgnoreSIGPIPE=no",                  // the machine's processes start as on any system
];

/// As systemd allows them to units with `RootImage=` (systemd.exec(5)); the last are partitions.
const LOOP_DEVICES: [&str; 3] = [
    "DeviceAllow=/dev/loop-control rw",
    "DeviceAllow=block-loop rw",
    "DeviceAllow=block-blkext r",
];

/// A machine's unit.
#[derive(Clone, Debug)]
pub struct Unit<'a> {
    /// The machine.
    pub name: &'a MachineName,
    /// The image's name, for the description.
    pub image: &'a str,
    /// How long the machine may take to boot.
    pub timeout: Duration,
    /// How long it may run; systemd ends it then, whoever has forgotten it.
    pub lifetime: Option<Duration>,
    /// Whether it mounts file systems in files.
    pub has_disks: bool,
    /// Whether the command returns when the unit is ready, or when it has begun.
    pub is_waited_for: bool,
    /// More properties (`systemd.exec(5)`, `systemd.resource-control(5)`), as `NAME=VALUE`.
    pub properties: &'a [OsString],
}

impl Unit<'_> {
    /// The command that starts `payload` as the unit's process and returns when it is ready.
    #[must_use]
    pub fn start_command(&self, payload: &[OsString]) -> Vec<OsString> {
        let mut argv: Vec<OsString> = ["systemd-run", "--collect", "--service-type=notify"]
            .map(OsString::from)
            .into();
        if !self.is_waited_for {
            argv.push("--no-block".into());
        }
        argv.push(format!("--unit={}", paths::unit_of(self.name)).into());
        argv.push(format!("--slice={SLICE}").into());
        argv.push(
            format!(
                "--description=CI machine {} of image {}",
                self.name,
                escaped(self.image)
            )
            .into(),
        );
        argv.extend(PROPERTIES.map(|property| format!("--property={property}").into()));
        if self.has_disks {
            argv.extend(LOOP_DEVICES.map(|property| format!("--property={property}").into()));
        }
        argv.push(format!("--property=TimeoutStartSec={}s", self.timeout.as_secs()).into());
        argv.extend(
            self.lifetime
                .map(|time| format!("--property=RuntimeMaxSec={}s", time.as_secs()).into()),
        );
        argv.extend(
            self.properties
                .iter()
                .map(|property| join("--property=", property)),
        );
        argv.push("--".into());
        argv.extend(payload.iter().map(|word| unexpanded(word)));
        argv
    }
}

fn join(option: &str, value: &OsString) -> OsString {
    let mut joined = OsString::from(option);
    joined.push(value);
    joined
}

/// A word of a service's command as it is: systemd replaces `$NAME` there, and `$$` is one dollar in every version.
#[must_use]
pub fn unexpanded(word: &OsStr) -> OsString {
    let dollars = |byte: &u8| usize::from(*byte == b'$') + 1;
    OsString::from_vec(
        word.as_bytes()
            .iter()
            .flat_map(|byte| std::iter::repeat_n(*byte, dollars(byte)))
            .collect(),
    )
}

// A description is one line; `%` and `$` mean something to systemd elsewhere, not here.
fn escaped(text: &str) -> String {
    text.escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_properties_come_last_and_the_payload_after_all_options() {
        let name = MachineName::new("m").unwrap();
        let properties = [OsString::from("TasksMax=5")];
        let unit = Unit {
            name: &name,
            image: "trixie",
            timeout: Duration::from_secs(90),
            lifetime: Some(Duration::from_secs(7)),
            has_disks: false,
            is_waited_for: true,
            properties: &properties,
        };
        let argv = unit.start_command(&["/bin/true".into(), "--x=$HOME".into()]);
        let place = |text: &str| {
            argv.iter()
                .position(|word| word == text)
                .unwrap_or_else(|| panic!("{text} in {argv:?}"))
        };
        assert!(place("--property=DevicePolicy=closed") < place("--property=TasksMax=5"));
        assert!(place("--property=TasksMax=5") < place("--"));
        assert!(place("--unit=nspawn-m.service") < place("--"));
        assert!(place("--property=TimeoutStartSec=90s") < place("--"));
        assert!(place("--property=RuntimeMaxSec=7s") < place("--property=TasksMax=5"));
        assert_eq!(argv[argv.len() - 2..], ["/bin/true", "--x=$$HOME"]);
    }
}
