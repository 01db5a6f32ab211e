//! Base images: where they are, what a name means, and whether a machine can be made of one.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, OFlag};

use crate::command::flock;
use crate::command::flock::Kind;
use crate::config::init::Init;
use crate::error::Failure;
use crate::image::version;
use crate::sys::fs::open_in_root;

/// How often an image that is removed meanwhile is looked for anew.
const LOCK_ATTEMPTS: u32 = 10;
/// Time limit for another process that removes the image.
const LOCK_LIMIT: Duration = Duration::from_secs(60);

/// The directories that systemd-machined searches, in its order (systemd 252 to 262).
pub const SEARCH_PATH: [&str; 6] = [
    "/etc/machines",
    "/run/machines",
    "/var/lib/machines",
    "/var/lib/container",
    "/usr/local/lib/machines",
    "/usr/lib/machines",
];

/// A base OS tree that machines start from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// What `machinectl list-images` calls it.
    pub name: String,
    /// The directory or the disk image, without symbolic links.
    pub path: PathBuf,
}

impl Image {
    /// Whether it is a disk image.
    #[must_use]
    pub fn is_disk(&self) -> bool {
        self.path.is_file()
    }

    /// Its name, and its version where it has one.
    #[must_use]
    pub fn describe(&self) -> String {
        match self
            .path
            .file_name()
            .filter(|version| **version != *self.name)
        {
            Some(version) => format!("{} ({})", self.name, version.to_string_lossy()),
            None => self.name.clone(),
        }
    }
}

/// Finds the image that `reference` means: a plain name, or a docker-style one by the rule of
/// [`candidates`]. As systemd-machined has it, a name stands for a directory of that name, for `NAME.raw`, or for
/// the newest version in `NAME.v/` or `NAME.raw.v/`, in this order, in the first directory that has any of these;
/// what is called so and is none of them is passed over.
///
/// # Errors
/// A [`JobError`] that lists the images there are, when none fits or the one that fits is no image.
pub fn find(reference: &str) -> Result<Image> {
    find_in(&SEARCH_PATH.map(Path::new), reference)
}

fn find_in(directories: &[&Path], reference: &str) -> Result<Image> {
    let names = candidates(reference);
    for name in &names {
        let mut refused = None;
        for directory in directories {
            if let Some(image) = open(directory, name, &mut refused)? {
                return Ok(image);
            }
        }
        // The name means this and no other.
        if let Some(why) = refused {
            bail!(Failure::job(why));
        }
    }
    bail!(Failure::job(unknown(directories, reference, &names)))
}

/// As [`find`], with a lock under which nobody removes the image: see [`ImageLock`].
///
/// # Errors
/// As [`find`]; it is removed as often as it is found.
pub fn find_and_lock(reference: &str) -> Result<(Image, ImageLock)> {
    for _ in 0..LOCK_ATTEMPTS {
        let image = find(reference)?;
        if let Some(lock) = ImageLock::acquire(&image.path)? {
            return Ok((image, lock));
        }
    }
    bail!("the image {reference} is being removed; try again")
}

/// A shared lock of an image. While it is held `nspawn-image` does not remove the image.
///
/// `nspawn-image` takes an exclusive lock of the image to remove it, and also checks the states of machines.
#[derive(Debug)]
pub struct ImageLock {
    _file: Flock<File>,
}

impl ImageLock {
    /// Waits until no process removes the image at `path`. Returns `None` if the image is missing by then.
    fn acquire(path: &Path) -> Result<Option<Self>> {
        let file = match File::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            file => file.with_context(|| format!("can't open the image {}", path.display()))?,
        };
        let file = flock::lock(file, Kind::Shared, LOCK_LIMIT)
            .with_context(|| format!("can't lock the image {}", path.display()))?;
        Ok(flock::is_at(&file, path).then_some(Self { _file: file }))
    }
}

/// The names that `reference` may stand for, best first:
///
/// 1. as written;
/// 2. the last component, the tag after a dash: `registry.example/x/debian:bookworm` is
///    `debian-bookworm`; the tag `latest` and a digest count as none;
/// 3. for `debian` and `ubuntu`, whose tags name releases, the tag alone: `bookworm`.
#[must_use]
pub fn candidates(reference: &str) -> Vec<String> {
    let last = reference.rsplit('/').next().unwrap_or_default();
    let undigested = last.split('@').next().unwrap_or_default();
    let (name, tag) = undigested.split_once(':').unwrap_or((undigested, ""));
    let mut names = vec![reference.to_owned()];
    if tag.is_empty() || tag == "latest" {
        names.push(name.to_owned());
    } else {
        names.push(format!("{name}-{tag}"));
        if ["debian", "ubuntu"].contains(&name) {
            names.push(tag.to_owned());
        }
    }
    names.retain(|name| is_image_name(name));
    names.dedup();
    names
}

/// Refuses an image, found at `path` and with its tree at `root`, of which no machine with this `init` can be made,
/// and says what it lacks.
///
/// # Errors
/// A [`JobError`] that names what is missing.
pub fn check(image: &str, path: &Path, root: &Path, init: Init) -> Result<()> {
    let tree = fs::File::open(root).with_context(|| format!("can't open the image {image}"))?;
    let tree = OwnedFd::from(tree);
    let has = |paths: &[&str]| paths.iter().any(|path| exists_in(&tree, path));
    let lack = if !has(&["usr", "bin"]) {
        "is not an OS tree: it has neither /usr nor /bin"
    } else if init != Init::Systemd {
        return Ok(());
    } else if !has(&["usr/lib/systemd/systemd", "lib/systemd/systemd"]) {
        "has no systemd, which it needs to boot; install its package systemd-sysv or systemd, or see --init=stub"
    } else if !has(&["usr/bin/dbus-daemon", "usr/bin/dbus-broker-launch"]) {
        "has no D-Bus daemon, which a booted system needs; install its package dbus or dbus-broker"
    } else {
        return Ok(());
    };
    bail!(Failure::job(format!(
        "the image {image} ({}) {lack}",
        path.display()
    )))
}

fn exists_in(root: &OwnedFd, path: &str) -> bool {
    open_in_root(root, path, OFlag::O_PATH).is_ok()
}

// What the name stands for in this directory. Why the first thing of that name is no image is noted in `refused`.
fn open(directory: &Path, name: &str, refused: &mut Option<String>) -> Result<Option<Image>> {
    for suffix in ["", ".raw", ".v", ".raw.v"] {
        let path = directory.join(format!("{name}{suffix}"));
        if fs::symlink_metadata(&path).is_err() {
            continue;
        }
        let (found, why) = match suffix.strip_suffix(".v") {
            Some(kind) if path.is_dir() => {
                let why = format!(
                    "the image {name} has no version: nothing in {} is called",
                    path.display()
                );
                (
                    version::newest(&path, name, kind)?,
                    format!("{why} {name}_VERSION{kind}"),
                )
            }
            _ => (
                is_of_kind(&path, suffix).then(|| path.clone()),
                format!("{} {NO_IMAGE}", path.display()),
            ),
        };
        if let Some(path) = found {
            let real = fs::canonicalize(&path)
                .with_context(|| format!("can't follow the image {}", path.display()))?;
            return Ok(Some(Image {
                name: name.to_owned(),
                path: real,
            }));
        }
        refused.get_or_insert(why);
    }
    Ok(None)
}

const NO_IMAGE: &str = "is no image: that is a directory NAME, a file NAME.raw, or a directory NAME.v or NAME.raw.v of \
    versions of these";

fn is_of_kind(path: &Path, suffix: &str) -> bool {
    match suffix {
        "" => path.is_dir(),
        ".raw" => path.is_file(),
        _ => false,
    }
}

// image_name_is_valid() of systemd: a file name without control characters. Hidden entries are
// temporary files of systemd-machined and of nspawn-image.
fn is_image_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && !name.starts_with('.')
        && !name.contains('/')
        && !name.contains(char::is_control)
}

fn unknown(directories: &[&Path], reference: &str, tried: &[String]) -> String {
    let there = match list(directories) {
        names if names.is_empty() => {
            "there are none yet; nspawn-image create NAME makes one".to_owned()
        }
        names => format!("there are: {}", names.join(", ")),
    };
    let others: Vec<_> = tried
        .iter()
        .filter(|name| *name != reference)
        .map(String::as_str)
        .collect();
    let looked = if others.is_empty() {
        String::new()
    } else {
        format!(" (nor {})", others.join(", "))
    };
    format!("no image {reference:?}{looked}; {there}")
}

fn list(directories: &[&Path]) -> Vec<String> {
    let entries = directories
        .iter()
        .filter_map(|directory| fs::read_dir(directory).ok())
        .flatten()
        .flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| name_of(&entry.path())).collect();
    names.sort_unstable();
    names.dedup();
    names
}

// What an entry of a directory of images is called, if it is one.
fn name_of(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let name = match (path.is_dir(), file.strip_suffix(".v")) {
        (true, Some(versions)) => versions.strip_suffix(".raw").unwrap_or(versions),
        (true, None) => file,
        (false, _) => file.strip_suffix(".raw").filter(|_| path.is_file())?,
    };
    is_image_name(name).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_style_names() {
        assert_eq!(candidates("bookworm"), ["bookworm"]);
        assert_eq!(
            candidates("registry.example:5000/x/debian:bookworm"),
            ["debian-bookworm", "bookworm"]
        );
        assert_eq!(candidates("debian:latest"), ["debian:latest", "debian"]);
        assert_eq!(candidates("x/tool@sha256:00ff"), ["tool"]);
        assert_eq!(candidates("postgres:16"), ["postgres:16", "postgres-16"]);
    }

    #[test]
    fn names_that_are_no_file_names_mean_nothing() {
        for reference in ["", ".", "..", "a/..", "/", ".hidden", "a\nb", "../../etc"] {
            let names = candidates(reference);
            assert!(
                names.iter().all(|name| name == "etc"),
                "{reference:?} gave {names:?}"
            );
        }
    }

    #[test]
    fn an_unknown_image_lists_the_known_ones() {
        let dir = std::env::temp_dir().join(format!("nspawn-image-{}", std::process::id()));
        fs::create_dir_all(dir.join("bookworm")).unwrap();
        for other in [".building", "trixie.v/trixie_1", "trixie.v/trixie_2"] {
            fs::create_dir_all(dir.join(other)).unwrap();
        }
        fs::write(dir.join("disk.raw"), "").unwrap();
        fs::write(dir.join("file"), "").unwrap();
        let error = find_in(&[&dir], "sid").unwrap_err();
        let found = find_in(&[&dir], "debian:bookworm").unwrap();
        let newest = find_in(&[&dir], "trixie").unwrap();
        let disk = find_in(&[&dir], "disk").unwrap();
        let file = find_in(&[&dir], "file").unwrap_err();
        std::os::unix::fs::symlink("trixie.v/trixie_1", dir.join("trixie")).unwrap();
        let chosen = find_in(&[&dir], "trixie").unwrap();
        assert!(disk.is_disk() && !chosen.is_disk());
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(
            error.to_string(),
            "no image \"sid\"; there are: bookworm, disk, trixie"
        );
        assert_eq!((found.name, disk.name), ("bookworm".into(), "disk".into()));
        assert!(
            newest.path.ends_with("trixie.v/trixie_2")
                && chosen.path.ends_with("trixie.v/trixie_1")
        );
        assert!(file.to_string().contains("is no image"), "{file}");
    }
}
