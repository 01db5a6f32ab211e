//! State of a machine, which is recorded before any other part of the machine is made.
//!
//! | module | contents |
//! | --- | --- |
//! | this one | the state, and answers that follow from it |
//! | [`json`] | its JSON form |
//! | `file` | its file |

mod file;
pub mod json;

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use crate::config::address_family::AddressFamily;
use crate::config::init::Init;
use crate::config::layer::Layer;
use crate::config::network::Network;
use crate::config::private_users::PrivateUsers;
use crate::config::retention::Retention;
use crate::machine::name::MachineName;
use crate::machine::paths::MachinePaths;
use crate::sys::clock;
use crate::sys::clock::Moment;
use crate::sys::process::ProcessId;

/// Argument that makes `nspawn-run` run the command of a service, which it reads from the state of
/// the machine in the next argument.
pub const SERVICE_OPTION: &str = "--service-command";

/// A machine as `nspawn-prepare` made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// The machine's name.
    pub name: MachineName,
    /// Name that the machine was started under, after which its units are named.
    pub started_as: MachineName,
    /// Job in whose slice the machine's unit is, if the job has services.
    pub slice_of: Option<MachineName>,
    /// The image's name.
    pub image: String,
    /// The image's path.
    pub image_path: PathBuf,
    /// Directories and disk images whose overlay is the image, the lowest one first.
    pub image_layers: Vec<PathBuf>,
    /// Environment of every command in the machine, as `NAME=VALUE`.
    pub environment: Vec<OsString>,
    /// The user namespace that was requested.
    pub private_users: PrivateUsers,
    /// The machine's network.
    pub network: Network,
    /// The program that runs as PID 1.
    pub init: Init,
    /// The kind of layer.
    pub layer: Layer,
    /// Maximum size of the layer, in bytes. `None` if only the host's file system or memory limits it.
    pub layer_size: Option<u64>,
    /// Commands that start the machine, if each command in it does so.
    pub start: Vec<Vec<OsString>>,
    /// Time limit for each start command.
    pub timeout: Duration,
    /// Time of the request for the machine, by [`clock::awake`].
    pub created: Option<Duration>,
    /// Time after which the machine is stale.
    pub lifetime: Option<Duration>,
    /// Process with whose end the machine is stale.
    pub owner: Option<ProcessId>,
    /// Properties of the unit that were requested.
    pub properties: Vec<OsString>,
    /// Set if the machine runs containers of its own.
    pub nesting: bool,
    /// Address families of sockets that the machine may use besides the usual ones.
    pub address_families: Vec<AddressFamily>,
    /// Policy that says when the machine is kept for inspection.
    pub keep: Retention,
    /// Time for which the machine is kept.
    pub keep_for: Duration,
    /// User of the job's scripts, unless that is root.
    pub user: Option<String>,
    /// Command that runs the job's own scripts, if the job names one.
    pub entrypoint: Vec<OsString>,
    /// File of the cache that is mounted in the machine.
    pub cache: Option<PathBuf>,
    /// Role of the machine, if it is a service of a job.
    pub service: Option<ServiceRole>,
}

/// Role of a machine as a service of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceRole {
    /// The job's machine.
    pub job: MachineName,
    /// Number of the service in its job, from 1 on.
    pub number: u8,
    /// The image as the job names it.
    pub requested_image: String,
    /// Host names of the service.
    pub aliases: Vec<String>,
    /// Command of the service, in addition to the programs that the image starts itself.
    pub command: Vec<OsString>,
    /// User of the command, unless that is root.
    pub user: Option<String>,
    /// Working directory of the command, unless that is the user's home.
    pub directory: Option<OsString>,
    /// TCP port that accepts connections once the service is ready.
    pub port: Option<u16>,
    /// Time limit for the service to become ready.
    pub ready_timeout: Duration,
}

impl State {
    /// Returns the machine's paths.
    #[must_use]
    pub fn paths(&self) -> MachinePaths {
        MachinePaths::started_as(&self.name, &self.started_as).in_slice_of(self.slice_of.clone())
    }

    /// Returns whether the machine was taken over from a standby pool.
    #[must_use]
    pub fn is_taken_over(&self) -> bool {
        self.name != self.started_as
    }

    /// Returns the directory of the layer's directories.
    #[must_use]
    pub fn layer_root(&self) -> PathBuf {
        self.paths()
            .layer_root(self.layer, self.layer_size.is_some())
    }

    /// Returns the machine's age, without the time that the host slept.
    #[must_use]
    pub fn age(&self) -> Option<Duration> {
        Some(clock::awake().saturating_sub(self.created?))
    }

    /// Returns whether the machine is older than its lifetime. Without a lifetime, or an age, it is not.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.lifetime
            .zip(self.age())
            .is_some_and(|(lifetime, age)| age >= lifetime)
    }

    /// Returns the moment since which the journal has entries of the machine.
    #[must_use]
    pub fn begin(&self) -> Moment {
        let written = fs::metadata(self.paths().state_file()).and_then(|file| file.modified());
        Moment::new(
            written.unwrap_or(UNIX_EPOCH),
            self.created.unwrap_or_default(),
        )
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    /// Returns a state whose fields all differ from their defaults.
    pub(super) fn sample() -> State {
        State {
            name: MachineName::new("m").unwrap(),
            started_as: MachineName::new("standby-1").unwrap(),
            slice_of: Some(MachineName::new("j").unwrap()),
            image: "bookworm".into(),
            image_path: "/var/lib/machines/bookworm".into(),
            image_layers: vec!["/a".into(), "/b".into()],
            environment: vec!["A=1".into(), OsStr::from_bytes(b"B=\xff").into()],
            private_users: PrivateUsers::parse("655360:1048576").unwrap(),
            network: Network::Bridge("br0".into()),
            init: Init::None,
            layer: Layer::Tmpfs,
            layer_size: Some(1 << 30),
            start: vec![vec!["a".into(), OsStr::from_bytes(b"\xff").into()], vec![]],
            timeout: Duration::from_secs(90),
            created: Some(Duration::from_micros(1_500_000)),
            lifetime: Some(Duration::from_secs(5)),
            owner: Some(ProcessId::parse("1 2").unwrap()),
            properties: vec!["TasksMax=5".into()],
            nesting: true,
            address_families: vec![AddressFamily::parse("AF_ALG").unwrap()],
            keep: Retention::Failure,
            keep_for: Duration::from_secs(60),
            user: Some("u".into()),
            entrypoint: vec!["/bin/x".into()],
            cache: Some("/c".into()),
            service: Some(ServiceRole {
                job: MachineName::new("j").unwrap(),
                number: 2,
                requested_image: "db:1".into(),
                aliases: vec!["db".into()],
                command: vec!["run".into(), "".into()],
                user: Some("db".into()),
                directory: Some("/db".into()),
                port: Some(5432),
                ready_timeout: Duration::from_secs(30),
            }),
        }
    }

    #[test]
    fn machine_is_over_after_its_lifetime() {
        let aged = |seconds: u64, lifetime: Option<u64>| {
            let created = clock::awake().checked_sub(Duration::from_secs(seconds));
            State {
                created,
                lifetime: lifetime.map(Duration::from_secs),
                ..sample()
            }
        };
        assert!(aged(1, Some(1)).is_over() && aged(0, Some(0)).is_over());
        assert!(!aged(1, Some(60)).is_over() && !aged(1, None).is_over());
        // A machine without a recorded time of creation is never removed for its age.
        assert!(
            !State {
                created: None,
                lifetime: Some(Duration::ZERO),
                ..sample()
            }
            .is_over()
        );
    }
}
