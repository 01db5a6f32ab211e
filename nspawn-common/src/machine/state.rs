//! State of a machine, which is recorded before any other part of the machine is created.
//!
//! Another version of the programs may read the state, because an upgrade does not stop machines.
//! Fields that were added without a new version of the format have a default, and unknown fields
//! are ignored. A field that an older program must not ignore raises the version, so that the older
//! program refuses the machine.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::io::{ErrorKind, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::config::init::Init;
use crate::config::layer::Layer;
use crate::config::network::Network;
use crate::config::private_users::PrivateUsers;
use crate::config::retention::Retention;
use crate::machine::name::MachineName;
use crate::machine::paths;
use crate::machine::paths::MachinePaths;
use crate::sys::clock;
use crate::sys::clock::Moment;
use crate::sys::process::ProcessId;

/// Version of the file's format.
const VERSION: u64 = 3;
/// Maximum size of a state file, in bytes.
const MAX_SIZE: u64 = 4 << 20;

/// Error for a state in another version of the format.
///
/// The machine exists, but this program can't read its state.
#[derive(Debug)]
pub struct OtherVersion(u64);

impl fmt::Display for OtherVersion {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(version) = self;
        let which = if *version > VERSION {
            "a newer"
        } else {
            "an older"
        };
        write!(
            out,
            "{which} version of these programs created the machine (format {version}, not {VERSION}); use that version"
        )
    }
}

impl std::error::Error for OtherVersion {}

/// A machine as `nspawn-prepare` created it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// The machine's name.
    pub name: MachineName,
    /// Name under which the machine was started. Its units have this name.
    pub started_as: MachineName,
    /// The image's name.
    pub image: String,
    /// The image's path.
    pub image_path: PathBuf,
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
    /// Maximum size of the layer, in bytes, or `None` if only the host's disk or memory limits it.
    pub layer_size: Option<u64>,
    /// Commands that start the machine, if it has no init. `nspawn-run` then runs them.
    pub start: Vec<Vec<OsString>>,
    /// Time limit for each start command.
    pub timeout: Duration,
    /// Time of the request for the machine, by [`clock::awake`].
    pub created: Option<Duration>,
    /// Time after which the machine is stale.
    pub lifetime: Option<Duration>,
    /// Process whose end makes the machine stale.
    pub owner: Option<ProcessId>,
    /// Properties of the unit that were requested.
    pub properties: Vec<OsString>,
    /// Set if the machine runs containers of its own.
    pub nesting: bool,
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
    /// Returns the content of the state file.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "version": VERSION,
            "name": self.name.as_str(),
            "image": self.image,
            "image_path": bytes_to_json(self.image_path.as_os_str()),
            "unit": self.paths().unit(),
            "init": self.init.to_string(),
            "layer": self.layer.to_string(),
            "environment": list_to_json(&self.environment),
            "private_users": self.private_users.to_string(),
            "network": self.network.to_string(),
            "layer_size": self.layer_size,
            "start": self.start.iter().map(|command| list_to_json(command)).collect::<Vec<_>>(),
            "timeout_seconds": self.timeout.as_secs(),
            "created_monotonic_usec": self.created.map(|created| u64::try_from(created.as_micros()).unwrap_or(u64::MAX)),
            "lifetime_seconds": self.lifetime.map(|lifetime| lifetime.as_secs()),
            "owner": self.owner.map(|owner| owner.to_string()),
            "properties": list_to_json(&self.properties),
            "nesting": self.nesting,
            "keep": self.keep.keyword(),
            "keep_seconds": self.keep_for.as_secs(),
            "user": self.user,
            "entrypoint": list_to_json(&self.entrypoint),
            "cache": self.cache.as_ref().map(|cache| bytes_to_json(cache.as_os_str())),
            "service": self.service.as_ref().map(ServiceRole::to_json),
        })
    }

    /// Returns the machine's paths.
    #[must_use]
    pub fn paths(&self) -> MachinePaths {
        MachinePaths::started_as(&self.name, &self.started_as)
    }

    /// Returns the paths of the machine `name`, which need not exist.
    ///
    /// The name of the unit is read from the state, even if another version of the programs wrote
    /// it. Without a readable state, the unit has the machine's own name.
    #[must_use]
    pub fn paths_of(name: &MachineName) -> MachinePaths {
        let paths = MachinePaths::named(name);
        let text = read_bounded(&paths.state_file()).unwrap_or_default();
        let value: Value = serde_json::from_slice(&text).unwrap_or_default();
        match started_as(&value) {
            Some(started_as) => MachinePaths::started_as(name, &started_as),
            None => paths,
        }
    }

    /// Returns whether the machine was taken over from a standby pool.
    #[must_use]
    pub fn is_taken_over(&self) -> bool {
        self.name != self.started_as
    }

    /// Returns the directory that contains the upper and work directories of the layer's overlays.
    #[must_use]
    pub fn layer_root(&self) -> PathBuf {
        self.paths()
            .layer_root(self.layer, self.layer_size.is_some())
    }

    /// Returns the machine's age, not counting the time in which the host was suspended.
    #[must_use]
    pub fn age(&self) -> Option<Duration> {
        Some(clock::awake().saturating_sub(self.created?))
    }

    /// Returns whether the machine is older than its lifetime.
    ///
    /// A machine without a lifetime or a recorded age never is.
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

    /// Reads the state of the machine `name`.
    ///
    /// # Errors
    /// Fails with [`OtherVersion`] if another version of these programs created the machine.
    pub fn read(name: &MachineName) -> Result<Self> {
        let path = MachinePaths::named(name).state_file();
        let text = match read_bounded(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                bail!("there is no machine {name}; create it: nspawn-prepare --name={name} IMAGE")
            }
            Err(error) => {
                return Err(error).with_context(|| format!("can't read {}", path.display()));
            }
        };
        Self::parse(name, &text).with_context(|| {
            format!(
                "can't use {} (nspawn-cleanup {name} removes the machine)",
                path.display()
            )
        })
    }

    /// Returns the path of the image of the machine `name`, or `None` if its state has no such
    /// path.
    ///
    /// Another version of these programs may have created the machine.
    #[must_use]
    pub fn image_path_of(name: &MachineName) -> Option<PathBuf> {
        Self::parse_image_path(&read_bounded(&MachinePaths::named(name).state_file()).ok()?)
    }

    // The field has the same name and form in every version of the format.
    fn parse_image_path(text: &[u8]) -> Option<PathBuf> {
        let value: Value = serde_json::from_slice(text).ok()?;
        json_to_bytes(&value["image_path"]).map(PathBuf::from)
    }

    fn parse(name: &MachineName, text: &[u8]) -> Result<Self> {
        let value: Value = serde_json::from_slice(text).context("it is not complete JSON")?;
        match value["version"].as_u64() {
            Some(VERSION) => {}
            Some(other) => bail!(OtherVersion(other)),
            None => bail!("it has no version"),
        }
        let field = |key: &str| {
            json_to_bytes(&value[key]).with_context(|| format!("it has no valid {key:?}"))
        };
        let text = |key: &str| {
            value[key]
                .as_str()
                .with_context(|| format!("it has no valid {key:?}"))
        };
        let list = |key: &str| {
            json_to_list(&value[key]).with_context(|| format!("it has no valid {key:?}"))
        };
        let start = value["start"]
            .as_array()
            .context("it has no valid \"start\"")?
            .iter();
        Ok(Self {
            name: name.clone(),
            started_as: started_as(&value).context("it has no valid \"unit\"")?,
            image: text("image")?.to_owned(),
            image_path: field("image_path")?.into(),
            environment: list("environment")?,
            private_users: PrivateUsers::parse(text("private_users")?)?,
            network: Network::parse(text("network")?)?,
            init: Init::parse(text("init")?)?,
            layer: Layer::parse(text("layer")?)?,
            layer_size: value["layer_size"].as_u64(),
            start: start
                .map(json_to_list)
                .collect::<Option<_>>()
                .context("it has no valid \"start\"")?,
            timeout: Duration::from_secs(
                value["timeout_seconds"]
                    .as_u64()
                    .context("it has no valid \"timeout_seconds\"")?,
            ),
            created: value["created_monotonic_usec"]
                .as_u64()
                .map(Duration::from_micros),
            lifetime: value["lifetime_seconds"].as_u64().map(Duration::from_secs),
            owner: value["owner"].as_str().map(ProcessId::parse).transpose()?,
            properties: list("properties")?,
            nesting: value["nesting"].as_bool().unwrap_or_default(),
            keep: value["keep"]
                .as_str()
                .map_or(Ok(Retention::default()), Retention::parse)?,
            keep_for: Duration::from_secs(value["keep_seconds"].as_u64().unwrap_or_default()),
            user: value["user"].as_str().map(str::to_owned),
            entrypoint: json_to_list(&value["entrypoint"]).unwrap_or_default(),
            cache: json_to_bytes(&value["cache"]).map(PathBuf::from),
            service: Some(&value["service"])
                .filter(|role| role.is_object())
                .map(ServiceRole::parse)
                .transpose()?,
        })
    }
}

impl ServiceRole {
    fn to_json(&self) -> Value {
        json!({
            "job": self.job.as_str(),
            "number": self.number,
            "requested_image": self.requested_image,
            "aliases": self.aliases,
            "command": list_to_json(&self.command),
            "user": self.user,
            "directory": self.directory.as_ref().map(|directory| bytes_to_json(directory)),
            "port": self.port,
            "ready_timeout_seconds": self.ready_timeout.as_secs(),
        })
    }

    fn parse(value: &Value) -> Result<Self> {
        let number = value["number"]
            .as_u64()
            .and_then(|number| u8::try_from(number).ok());
        let aliases = value["aliases"].as_array().into_iter().flatten();
        Ok(Self {
            job: MachineName::new(value["job"].as_str().context("it has no valid \"job\"")?)?,
            number: number.context("it has no valid \"number\"")?,
            requested_image: value["requested_image"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
            aliases: aliases
                .filter_map(|alias| alias.as_str().map(str::to_owned))
                .collect(),
            command: json_to_list(&value["command"]).context("it has no valid \"command\"")?,
            user: value["user"].as_str().map(str::to_owned),
            directory: json_to_bytes(&value["directory"]),
            port: value["port"]
                .as_u64()
                .and_then(|port| u16::try_from(port).ok()),
            ready_timeout: Duration::from_secs(
                value["ready_timeout_seconds"].as_u64().unwrap_or_default(),
            ),
        })
    }
}

fn started_as(state: &Value) -> Option<MachineName> {
    let unit = state["unit"].as_str()?;
    MachineName::new(paths::name_of_unit(unit.as_ref())?).ok()
}

fn read_bounded(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    fs::File::open(path)?
        .take(MAX_SIZE)
        .read_to_end(&mut text)?;
    Ok(text)
}

/// Returns a JSON string, or an array of numbers if the bytes are not UTF-8.
fn bytes_to_json(bytes: &OsStr) -> Value {
    bytes
        .to_str()
        .map_or_else(|| json!(bytes.as_bytes()), |text| json!(text))
}

fn list_to_json(list: &[OsString]) -> Value {
    list.iter().map(|entry| bytes_to_json(entry)).collect()
}

fn json_to_list(value: &Value) -> Option<Vec<OsString>> {
    value.as_array()?.iter().map(json_to_bytes).collect()
}

fn json_to_bytes(value: &Value) -> Option<OsString> {
    match value {
        Value::String(text) => Some(text.into()),
        Value::Array(numbers) => numbers
            .iter()
            .map(|number| number.as_u64().and_then(|number| u8::try_from(number).ok()))
            .collect::<Option<Vec<u8>>>()
            .map(OsString::from_vec),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> State {
        State {
            name: MachineName::new("m").unwrap(),
            started_as: MachineName::new("standby-1").unwrap(),
            image: "bookworm".into(),
            image_path: "/var/lib/machines/bookworm".into(),
            environment: vec!["A=1".into(), OsStr::from_bytes(b"B=\xff").into()],
            private_users: PrivateUsers::Base(655_360),
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
    fn state_survives_a_round_trip() {
        let text = sample().to_json().to_string();
        assert_eq!(
            State::parse(&sample().name, text.as_bytes()).unwrap(),
            sample()
        );
    }

    #[test]
    fn image_path_is_read_from_any_version() {
        let mut value = sample().to_json();
        value["version"] = json!(VERSION + 1);
        value["init"] = json!("of a later version");
        let text = value.to_string();
        let path = Some(sample().image_path);
        assert_eq!(State::parse_image_path(text.as_bytes()), path);
        assert_eq!(State::parse_image_path(b"{}"), None);
        assert_eq!(State::parse_image_path(&text.as_bytes()[..20]), None);
    }

    #[test]
    fn unknown_fields_are_ignored_and_added_fields_have_defaults() {
        let mut value = sample().to_json();
        value["later"] = json!({ "any": [1] });
        assert_eq!(
            State::parse(&sample().name, value.to_string().as_bytes()).unwrap(),
            sample()
        );
        let added = [
            "created_monotonic_usec",
            "lifetime_seconds",
            "owner",
            "nesting",
            "keep",
            "keep_seconds",
            "user",
        ];
        let added = added.into_iter().chain(["entrypoint", "cache", "service"]);
        added.for_each(|field| drop(value.as_object_mut().unwrap().remove(field)));
        let read = State::parse(&sample().name, value.to_string().as_bytes()).unwrap();
        assert_eq!(
            (read.created, read.keep, read.nesting, &read.service),
            (None, Retention::Never, false, &None)
        );
        assert!(!read.is_over());
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

    #[test]
    fn truncated_and_unknown_states_are_refused() {
        let text = sample().to_json().to_string();
        for cut in 0..text.len() {
            assert!(
                State::parse(&sample().name, &text.as_bytes()[..cut]).is_err(),
                "{cut}"
            );
        }
        let later = text.replace("\"version\":3", "\"version\":4");
        let error = State::parse(&sample().name, later.as_bytes()).unwrap_err();
        assert!(
            error.is::<OtherVersion>() && format!("{error:#}").starts_with("a newer version"),
            "{error:#}"
        );
        assert!(State::parse(&sample().name, b"[]").is_err());
    }
}
