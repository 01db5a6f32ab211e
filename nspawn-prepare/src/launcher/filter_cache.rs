//! Cache of the filters of system calls that systemd-nspawn compiles.
//!
//! systemd-nspawn compiles the same filters for each machine, which takes longer than all else that
//! it does (libseccomp, 30 to 50 ms of CPU time). So the launcher of the first machine starts a unit
//! that runs systemd-nspawn once more, traces it, and records the filters that its payload gets. The
//! payload is a program of the host, so no image can have a part in that. The next launchers install
//! these filters themselves, and systemd-nspawn compiles none.
//!
//! An entry is valid for the options that decide on filters, for the files of systemd-nspawn and its
//! libraries, and until the host's next boot, because it is in /run.

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use nspawn_common::command;
use nspawn_common::machine::paths::STATE_ROOT;
use nspawn_common::sys::filter_recording::{self, Recording};
use nspawn_common::sys::fs::write_atomic;
use nspawn_common::sys::seccomp::{self, Program};
use nspawn_common::systemd::transient_unit::TransientUnit;
use serde_json::{Value, json};

use crate::internal_form::Internal;

/// Directory of the entries, below that of all machines.
const DIRECTORY: &str = ".filters";
/// Library that systemd 258 and newer loads at run time.
const LIBSECCOMP: &str = "libseccomp.so.2";
/// File that ldconfig(8) replaces when a library changes.
const LINKER_CACHE: &str = "/etc/ld.so.cache";
/// Time limit of a recording, which takes a tenth of a second.
const LIMIT: Duration = Duration::from_secs(60);

/// Time after which a recording that failed is repeated, for example because a package was being
/// upgraded.
const RETRY: Duration = Duration::from_secs(300);

/// Options of systemd-nspawn that do not change the filters, up to the equals sign.
const NEUTRAL: [&str; 19] = [
    "--as-pid2",
    "--bind",
    "--bind-ro",
    "--boot",
    "--console",
    "--directory",
    "--keep-unit",
    "--link-journal",
    "--machine",
    "--notify-ready",
    "--quiet",
    "--read-only",
    "--resolv-conf",
    "--rlimit",
    "--setenv",
    "--settings",
    "--timezone",
    "--tmpfs",
    "--volatile",
];

/// Options by which a machine has a network namespace, and with it CAP_NET_ADMIN.
const NETWORKS: [&str; 5] = [
    "--network-bridge",
    "--network-namespace-path",
    "--network-veth",
    "--network-zone",
    "--private-network",
];

/// Filters of system calls for machines with the same options.
pub struct Entry {
    options: Vec<String>,
    /// The filters; `None` if this host has no valid entry.
    programs: Option<Vec<Program>>,
}

impl Entry {
    /// Returns the entry for these options of systemd-nspawn; `None` if an option may change the
    /// filters in a way that is not known here.
    pub fn of(options: &[OsString]) -> Option<Self> {
        let options = relevant(options)?;
        let programs = read(&options);
        Some(Self { options, programs })
    }

    /// Starts a unit that records the filters, unless they are known, or another machine's launcher
    /// has just started it. Does not wait for the unit.
    pub fn record_if_missing(&self) -> Result<()> {
        if self.programs.is_some() || !reserve(&recording(&self.options))? {
            return Ok(());
        }
        let form = Internal::RecordFilters {
            options: self.options.iter().map(OsString::from).collect(),
        };
        let unit = TransientUnit::new("exec")
            .named(&format!("nspawn-ci-filters-{}", hash(&self.options)))
            .options(["--quiet", "--no-block", "--property=Delegate=yes"])
            // A killed systemd-nspawn leaves directories there.
            .option("--property=TemporaryFileSystem=/run/systemd/nspawn")
            .option(format!("--property=RuntimeMaxSec={}", LIMIT.as_secs()));
        command::run_checked(&unit.command(&form.argv()?), LIMIT)?;
        Ok(())
    }

    /// Installs the filters in this process, and returns whether these are all that systemd-nspawn
    /// would install.
    pub fn install(&self) -> bool {
        let programs = self.programs.as_deref().unwrap_or_default();
        let mut installed = programs.iter().map(|program| seccomp::install(program));
        !programs.is_empty() && installed.all(|result| result.is_ok())
    }
}

/// Returns the options that decide on the filters; `None` if an option is not known here.
fn relevant(options: &[OsString]) -> Option<Vec<String>> {
    let mut relevant = Vec::new();
    let mut has_network = false;
    for word in options.iter().take_while(|word| *word != "--") {
        let word = word.to_str().unwrap_or_default();
        let name = word.split_once('=').map_or(word, |(name, _)| name);
        if name == "--system-call-filter" && !word.contains('~') {
            relevant.push(word.to_owned());
        } else if NETWORKS.contains(&name) {
            has_network = true;
        } else if !NEUTRAL.contains(&name) {
            return None;
        }
    }
    if has_network {
        relevant.push("--private-network".to_owned());
    }
    Some(relevant)
}

/// Records the filters for the options that decide on them.
///
/// If systemd-nspawn or the host does not allow that, the entry has no filters, so that launchers do
/// not try again and again.
pub fn record(options: &[OsString]) -> Result<()> {
    let options = relevant(options).context("can't record filters: unknown options")?;
    let place = recording(&options);
    let root = place.join("root");
    create_directory(&root.join("usr"))?;
    let recorded = record_in(&root, &options);
    // The next recording replaces what can't be removed.
    let _ = fs::remove_dir_all(&place);
    let (programs, files, result) = match recorded {
        Ok((programs, files)) => (programs, files, Ok(())),
        Err(error) => (Vec::new(), identities(Vec::new()), Err(error)),
    };
    let content = json!({
        "files": files,
        "checksum": hash(&(&options, &programs)),
        "programs": programs,
        "options": options,
    });
    write_atomic(&path(&options), content.to_string().as_bytes())?;
    result
}

/// Returns the filters, and the files on which they depend.
fn record_in(root: &Path, options: &[String]) -> Result<(Vec<Program>, Vec<Dependency>)> {
    let begin = SystemTime::now();
    let payload = command::current_program()?;
    let mut manager = Command::new("systemd-nspawn");
    manager
        .args(["--quiet", "--settings=no", "--keep-unit", "--register=no"])
        .args(["--link-journal=no", "--timezone=off", "--resolv-conf=off"])
        .arg(format!("--directory={}", root.display()))
        .arg(format!("--bind-ro={}:/payload", payload.display()))
        .args(options)
        .args(["--", "/payload"])
        .stdin(Stdio::null());
    let Recording { programs, files } = filter_recording::record(manager, &payload)?;
    let files = identities(files);
    // A file that is missing or newer may not be the one that ran. Only the linker's cache is optional.
    let is_unchanged = |(file, identity): &&Dependency| match identity {
        Some(identity) => changed(identity) < begin,
        None => file == Path::new(LINKER_CACHE),
    };
    if let Some((file, _)) = files.iter().find(|file| !is_unchanged(file)) {
        bail!("{} has changed while filters were recorded", file.display());
    }
    Ok((programs, files))
}

/// Numbers that change when a file is replaced or written: its place and size, and the time of its
/// last change in seconds and nanoseconds.
type Identity = ([u64; 3], [i64; 2]);

/// A file, with its identity if it exists.
type Dependency = (PathBuf, Option<Identity>);

/// Returns the files on which the filters depend, given those that systemd-nspawn has mapped.
fn identities(mut files: Vec<PathBuf>) -> Vec<Dependency> {
    let libraries: Vec<_> = files
        .iter()
        .filter_map(|file| Some(file.parent()?.join(LIBSECCOMP)))
        .filter(|file| file.exists())
        .collect();
    files.extend(libraries);
    files.push(LINKER_CACHE.into());
    files.sort();
    files.dedup();
    let with_identity = |file: PathBuf| {
        let identity = identity(&file);
        (file, identity)
    };
    files.into_iter().map(with_identity).collect()
}

fn changed((_, [seconds, nanoseconds]): &Identity) -> SystemTime {
    let seconds = u64::try_from(*seconds).unwrap_or_default();
    let nanoseconds = u32::try_from(*nanoseconds).unwrap_or_default();
    UNIX_EPOCH + Duration::new(seconds, nanoseconds)
}

fn identity(file: &Path) -> Option<Identity> {
    let status = fs::metadata(file).ok()?;
    let place = [status.dev(), status.ino(), status.size()];
    Some((place, [status.ctime(), status.ctime_nsec()]))
}

fn read(options: &[String]) -> Option<Vec<Program>> {
    let path = path(options);
    let content: Value = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
    let programs: Vec<Program> = list(&content["programs"])?
        .map(|program| list(program)?.map(Value::as_u64).collect())
        .collect::<Option<_>>()?;
    let is_current = |entry: &Value| {
        let file = entry[0].as_str().unwrap_or_default();
        json!(identity(file.as_ref())) == entry[1]
    };
    let is_valid = content["options"] == json!(options)
        && content["checksum"] == hash(&(options, &programs))
        && list(&content["files"])?.all(is_current);
    let is_final = if programs.is_empty() {
        age(&path).is_some_and(|age| age < RETRY)
    } else {
        let program = command::find_program("systemd-nspawn")?
            .canonicalize()
            .ok()?;
        // The systemd-nspawn that this process would execute must be the one that was recorded.
        list(&content["files"])?.any(|entry| entry[0].as_str() == program.to_str())
    };
    (is_valid && is_final).then_some(programs)
}

fn age(path: &Path) -> Option<Duration> {
    fs::metadata(path).ok()?.modified().ok()?.elapsed().ok()
}

fn list(value: &Value) -> Option<impl Iterator<Item = &Value>> {
    Some(value.as_array()?.iter())
}

fn path(options: &[String]) -> PathBuf {
    Path::new(STATE_ROOT)
        .join(DIRECTORY)
        .join(format!("{}.json", hash(&options)))
}

/// Returns the directory of a recording, which exists while it runs.
fn recording(options: &[String]) -> PathBuf {
    path(options).with_extension("recording")
}

/// Creates the directory of a recording, and returns whether none exists that still runs.
fn reserve(place: &Path) -> Result<bool> {
    if let Some(age) = age(place) {
        if age < LIMIT {
            return Ok(false);
        }
        fs::remove_dir_all(place).with_context(|| format!("can't remove {}", place.display()))?;
    }
    place.parent().map_or(Ok(()), create_directory)?;
    match DirBuilder::new().mode(0o700).create(place) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        created => created.map(|()| true).context("can't record filters"),
    }
}

fn create_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn hash(value: &impl Hash) -> String {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relevant_of(words: &[&str]) -> Option<Vec<String>> {
        relevant(&words.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn options_that_decide_on_filters_are_kept() {
        let words = [
            "--quiet",
            "--machine=m",
            "--network-zone=z",
            "--system-call-filter=bpf",
            "--boot",
            "--",
            "--capability=all",
        ];
        assert_eq!(
            relevant_of(&words).unwrap(),
            ["--system-call-filter=bpf", "--private-network"]
        );
        assert_eq!(relevant_of(&["--quiet"]).unwrap(), [""; 0]);
    }

    #[test]
    fn filters_of_other_options_are_not_cached() {
        for word in [
            "--capability=all",
            "--drop-capability=CAP_SYS_ADMIN",
            "--system-call-filter=~bpf",
            "--new-option",
            "--machines=m",
        ] {
            assert_eq!(relevant_of(&["--quiet", word]), None, "{word}");
        }
    }
}
