//! JSON form of the state.
//!
//! Another version of the programs may read the state, because an upgrade does not stop machines.
//! Fields that were added without a new version of the format have a default, and unknown fields
//! are ignored. A field that an older program must not ignore raises the version, so that the older
//! program refuses the machine.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::config::address_family::AddressFamily;
use crate::config::init::Init;
use crate::config::layer::Layer;
use crate::config::network::Network;
use crate::config::private_users::PrivateUsers;
use crate::config::retention::Retention;
use crate::machine::name::MachineName;
use crate::machine::paths;
use crate::machine::state::{ServiceRole, State};
use crate::sys::process::ProcessId;

/// Version of the file's format.
const VERSION: u64 = 5;
/// Version of the state of a machine whose image is no stack of layers, which older programs can use.
const VERSION_WITHOUT_STACK: u64 = 4;
/// Version of the state of a machine that is in no slice of a job either.
const VERSION_WITHOUT_SLICE: u64 = 3;

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

impl State {
    /// Returns the content of the state file.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let version = match (&*self.image_layers, &self.slice_of) {
            ([only], None) if *only == self.image_path => VERSION_WITHOUT_SLICE,
            ([only], Some(_)) if *only == self.image_path => VERSION_WITHOUT_STACK,
            _ => VERSION,
        };
        json!({
            "version": version,
            "name": self.name.as_str(),
            "image": self.image,
            "image_path": bytes_to_json(self.image_path.as_os_str()),
            "image_layers": self.image_layers.iter().map(|layer| bytes_to_json(layer.as_os_str())).collect::<Vec<_>>(),
            "unit": self.paths().unit(),
            "slice_of": self.slice_of.as_ref().map(MachineName::as_str),
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
            "address_families": self.address_families.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "keep": self.keep.keyword(),
            "keep_seconds": self.keep_for.as_secs(),
            "user": self.user,
            "entrypoint": list_to_json(&self.entrypoint),
            "cache": self.cache.as_ref().map(|cache| bytes_to_json(cache.as_os_str())),
            "service": self.service.as_ref().map(ServiceRole::to_json),
        })
    }

    // The fields have the same names and forms in every version of the format.
    pub(super) fn parse_image_paths(text: &[u8]) -> Option<Vec<PathBuf>> {
        let value: Value = serde_json::from_slice(text).ok()?;
        let path: PathBuf = json_to_bytes(&value["image_path"])?.into();
        let mut paths = image_layers(&value, &path);
        if !paths.contains(&path) {
            paths.insert(0, path);
        }
        Some(paths)
    }

    pub(super) fn parse(name: &MachineName, text: &[u8]) -> Result<Self> {
        let value: Value = serde_json::from_slice(text).context("it is not complete JSON")?;
        match value["version"].as_u64() {
            Some(VERSION_WITHOUT_SLICE..=VERSION) => {}
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
        let image_path: PathBuf = field("image_path")?.into();
        Ok(Self {
            name: name.clone(),
            started_as: started_as(&value).context("it has no valid \"unit\"")?,
            slice_of: slice_of(&value),
            image: text("image")?.to_owned(),
            image_layers: image_layers(&value, &image_path),
            image_path,
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
            address_families: address_families(&value["address_families"])?,
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

/// Returns the layers of the image at `path`, which older programs do not list.
fn image_layers(state: &Value, path: &Path) -> Vec<PathBuf> {
    let layers = json_to_list(&state["image_layers"]).filter(|layers| !layers.is_empty());
    layers.map_or_else(
        || vec![path.to_owned()],
        |layers| layers.into_iter().map(PathBuf::from).collect(),
    )
}

fn address_families(value: &Value) -> Result<Vec<AddressFamily>> {
    let names = value.as_array().into_iter().flatten();
    names
        .map(|name| AddressFamily::parse(name.as_str().unwrap_or_default()))
        .collect()
}

pub(super) fn started_as(state: &Value) -> Option<MachineName> {
    let unit = state["unit"].as_str()?;
    MachineName::new(paths::name_of_unit(unit.as_ref())?).ok()
}

pub(super) fn slice_of(state: &Value) -> Option<MachineName> {
    MachineName::new(state["slice_of"].as_str()?).ok()
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
    use crate::machine::state::tests::sample;

    #[test]
    fn state_survives_a_round_trip() {
        let text = sample().to_json().to_string();
        assert_eq!(
            State::parse(&sample().name, text.as_bytes()).unwrap(),
            sample()
        );
    }

    #[test]
    fn image_paths_are_read_from_any_version() {
        let mut value = sample().to_json();
        value["version"] = json!(VERSION + 1);
        value["init"] = json!("of a later version");
        let text = value.to_string();
        let paths = ["/var/lib/machines/bookworm", "/a", "/b"].map(PathBuf::from);
        assert_eq!(
            State::parse_image_paths(text.as_bytes()),
            Some(paths.to_vec())
        );
        value["image_layers"] = Value::Null;
        assert_eq!(
            State::parse_image_paths(value.to_string().as_bytes()),
            Some(paths[..1].to_vec())
        );
        assert_eq!(State::parse_image_paths(b"{}"), None);
        assert_eq!(State::parse_image_paths(&text.as_bytes()[..20]), None);
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
            "address_families",
            "keep",
            "keep_seconds",
            "user",
        ];
        let added = added
            .into_iter()
            .chain(["entrypoint", "cache", "service", "slice_of"]);
        added.for_each(|field| drop(value.as_object_mut().unwrap().remove(field)));
        let read = State::parse(&sample().name, value.to_string().as_bytes()).unwrap();
        assert_eq!(
            (read.created, read.keep, read.nesting, &read.service),
            (None, Retention::Never, false, &None)
        );
        assert!(!read.is_over());
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
        let now = format!("\"version\":{VERSION}");
        let later = text.replace(&now, &format!("\"version\":{}", VERSION + 1));
        let error = State::parse(&sample().name, later.as_bytes()).unwrap_err();
        assert!(
            error.is::<OtherVersion>() && format!("{error:#}").starts_with("a newer version"),
            "{error:#}"
        );
        assert!(State::parse(&sample().name, b"[]").is_err());
    }
}
