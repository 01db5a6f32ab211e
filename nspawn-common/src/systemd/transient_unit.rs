//! Command lines of systemd-run(1) for transient units.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::Duration;

use crate::machine::name::MachineName;
use crate::machine::paths;
use crate::machine::paths::SLICE;

/// Properties of every machine's unit. The user's `--property` options come later, and override
/// these.
const MACHINE_PROPERTIES: [&str; 9] = [
    "KillMode=mixed", // a stop signals the machine's PID 1, then kills all other processes
    "Delegate=yes",   // the machine's systemd creates cgroups below the unit's
    "PrivateMounts=yes", // the machine's root is mounted where the host can't see it
    // The launcher mounts file systems in files outside of this policy.
    "DevicePolicy=closed", // allows null, zero, full, random, urandom, tty and ptmx, and these two:
    "DeviceAllow=/dev/net/tun rwm", // as in systemd-nspawn@.service
    "DeviceAllow=char-pts rw", // the machine's console
    "TimeoutStopSec=10s",  // a stop is requested when no caller waits for an orderly end
    "OOMPolicy=continue",  // a process killed for lack of memory is the job's matter
    "IgnoreSIGPIPE=no",    // the machine's processes start as on any system
];

/// A transient unit, as systemd-run(1) starts it. It vanishes when it ends, even if it fails.
#[derive(Clone, Debug)]
pub struct TransientUnit {
    argv: Vec<OsString>,
}

impl TransientUnit {
    /// Returns a service of this type (`Type=` in systemd.service(5)).
    #[must_use]
    pub fn new(service_type: &str) -> Self {
        let argv = ["systemd-run", "--collect"].map(OsString::from).to_vec();
        Self { argv }.option(format!("--service-type={service_type}"))
    }

    /// Returns a scope, to which systemd-run(1) moves itself before it becomes the command.
    #[must_use]
    pub fn scope() -> Self {
        let argv = ["systemd-run", "--collect", "--scope"].map(OsString::from);
        Self { argv: argv.into() }
    }

    /// Adds an option of systemd-run(1).
    #[must_use]
    pub fn option(mut self, option: impl Into<OsString>) -> Self {
        self.argv.push(option.into());
        self
    }

    /// Adds options of systemd-run(1).
    #[must_use]
    pub fn options<const N: usize>(mut self, options: [&str; N]) -> Self {
        self.argv.extend(options.map(OsString::from));
        self
    }

    /// Sets the unit's name.
    #[must_use]
    pub fn named(self, unit: &str) -> Self {
        self.option(format!("--unit={unit}"))
    }

    /// Puts the unit in the slice of machines.
    #[must_use]
    pub fn in_slice_of_machines(self) -> Self {
        self.in_slice(SLICE)
    }

    /// Puts the unit in a slice.
    #[must_use]
    pub fn in_slice(self, slice: &str) -> Self {
        self.option(format!("--slice={slice}"))
    }

    /// Sets the unit's description, which is one line.
    #[must_use]
    pub fn described(self, description: &str) -> Self {
        self.option(format!("--description={}", description.escape_debug()))
    }

    /// Adds properties (systemd.exec(5), systemd.resource-control(5)), each as `NAME=VALUE`.
    #[must_use]
    pub fn properties(mut self, properties: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        for property in properties {
            let mut option = OsString::from("--property=");
            option.push(property);
            self.argv.push(option);
        }
        self
    }

    /// Returns the command that starts the unit, whose process runs `payload`.
    #[must_use]
    pub fn command(
        mut self,
        payload: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Vec<OsString> {
        self.argv.push("--".into());
        let words = payload.into_iter();
        self.argv.extend(words.map(|word| escaped(word.as_ref())));
        self.argv
    }
}

/// Returns a word of a service's command so that systemd leaves it as it is.
///
/// systemd replaces `$NAME` in such a word. `$$` is one dollar in every version.
fn escaped(word: &OsStr) -> OsString {
    let mut bytes = Vec::with_capacity(word.len());
    for byte in word.as_bytes() {
        bytes.push(*byte);
        if *byte == b'$' {
            bytes.push(b'$');
        }
    }
    OsString::from_vec(bytes)
}

/// The unit of a machine.
#[derive(Clone, Debug)]
pub struct MachineUnit<'a> {
    /// The machine's name.
    pub name: &'a MachineName,
    /// The slice that the unit is in.
    pub slice: String,
    /// The image's name, for the description.
    pub image: &'a str,
    /// Time limit for the boot.
    pub timeout: Duration,
    /// Time after which systemd stops the machine, even if every caller has forgotten it.
    pub lifetime: Option<Duration>,
    /// Set if the command returns when the unit is ready. Otherwise it returns when the start has
    /// begun.
    pub is_waited_for: bool,
    /// More properties, as `NAME=VALUE`.
    pub properties: &'a [OsString],
}

impl MachineUnit<'_> {
    /// Returns the command that starts the unit, whose process runs `payload`.
    #[must_use]
    pub fn start_command(&self, payload: &[OsString]) -> Vec<OsString> {
        let mut unit = TransientUnit::new("notify");
        if !self.is_waited_for {
            unit = unit.option("--no-block");
        }
        let description = format!("CI machine {} of image {}", self.name, self.image);
        unit = unit
            .named(&paths::unit_of(self.name))
            .in_slice(&self.slice)
            .described(&description)
            .properties(MACHINE_PROPERTIES);
        unit = unit.properties([format!("TimeoutStartSec={}s", self.timeout.as_secs())]);
        if let Some(lifetime) = self.lifetime {
            unit = unit.properties([format!("RuntimeMaxSec={}s", lifetime.as_secs())]);
        }
        unit.properties(self.properties).command(payload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_properties_come_last_and_the_payload_after_all_options() {
        let name = MachineName::new("m").unwrap();
        let properties = [OsString::from("TasksMax=5")];
        let unit = MachineUnit {
            name: &name,
            slice: SLICE.to_owned(),
            image: "trixie",
            timeout: Duration::from_secs(90),
            lifetime: Some(Duration::from_secs(7)),
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

    #[test]
    fn descriptions_are_one_line() {
        let argv = TransientUnit::new("exec").described("a\nb").command(["x"]);
        assert_eq!(argv[3], "--description=a\\nb");
    }
}
