//! Base images: where they are, what a name means, and whether one can boot.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use crate::exit::JobError;

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
    /// The directory, without symbolic links.
    pub path: PathBuf,
}

/// Finds the image that `reference` means: a plain name, or a docker-style one by the rule of
/// [`candidates`].
///
/// # Errors
/// A [`JobError`] that lists the images there are, when none fits or the one that fits is no
/// directory.
pub fn find(reference: &str) -> Result<Image> {
    find_in(&SEARCH_PATH.map(Path::new), reference)
}

fn find_in(directories: &[&Path], reference: &str) -> Result<Image> {
    let names = candidates(reference);
    for name in &names {
        for directory in directories {
            let path = directory.join(name);
            if fs::symlink_metadata(&path).is_ok() {
                return open(name, &path);
            }
        }
    }
    bail!(JobError(unknown(directories, reference, &names)))
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

/// Refuses an image that can't boot, with what it lacks.
///
/// # Errors
/// A [`JobError`] that names what is missing.
pub fn check_bootable(image: &Image) -> Result<()> {
    let root = fs::File::open(&image.path).with_context(|| format!("can't open the image {}", image.name))?;
    let root = OwnedFd::from(root);
    let has = |paths: &[&str]| paths.iter().any(|path| exists_in(&root, path));
    let lack = if !has(&["usr"]) {
        "is not an OS tree: it has no /usr"
    } else if !has(&["usr/lib/systemd/systemd", "lib/systemd/systemd"]) {
        "has no systemd, which it needs to boot; install its package systemd-sysv or systemd"
    } else if !has(&["usr/bin/dbus-daemon", "usr/bin/dbus-broker-launch"]) {
        "has no D-Bus daemon, which a booted system needs; install its package dbus or dbus-broker"
    } else {
        return Ok(());
    };
    bail!(JobError(format!("the image {} ({}) {lack}", image.name, image.path.display())))
}

// A symbolic link in the image means what it means inside the image.
fn exists_in(root: &OwnedFd, path: &str) -> bool {
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_IN_ROOT);
    openat2(root, path, how).is_ok()
}

fn open(name: &str, path: &Path) -> Result<Image> {
    let real = fs::canonicalize(path).with_context(|| format!("can't follow the image {}", path.display()))?;
    if !real.is_dir() {
        bail!(JobError(format!("the image {name} ({}) is not a directory", path.display())));
    }
    Ok(Image { name: name.to_owned(), path: real })
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
        names if names.is_empty() => "there are none yet; nspawn-image create NAME makes one".to_owned(),
        names => format!("there are: {}", names.join(", ")),
    };
    let others: Vec<_> = tried.iter().filter(|name| *name != reference).map(String::as_str).collect();
    let looked = if others.is_empty() { String::new() } else { format!(" (nor {})", others.join(", ")) };
    format!("no image {reference:?}{looked}; {there}")
}

fn list(directories: &[&Path]) -> Vec<String> {
    let entries = directories.iter().filter_map(|directory| fs::read_dir(directory).ok()).flatten().flatten();
    let mut names: Vec<String> = entries
        .filter(|entry| entry.path().is_dir())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| is_image_name(name))
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_style_names() {
        assert_eq!(candidates("bookworm"), ["bookworm"]);
        assert_eq!(candidates("registry.example:5000/x/debian:bookworm"), ["debian-bookworm", "bookworm"]);
        assert_eq!(candidates("debian:latest"), ["debian:latest", "debian"]);
        assert_eq!(candidates("x/tool@sha256:00ff"), ["tool"]);
        assert_eq!(candidates("postgres:16"), ["postgres:16", "postgres-16"]);
    }

    #[test]
    fn names_that_are_no_file_names_mean_nothing() {
        for reference in ["", ".", "..", "a/..", "/", ".hidden", "a\nb", "../../etc"] {
            let names = candidates(reference);
            assert!(names.iter().all(|name| name == "etc"), "{reference:?} gave {names:?}");
        }
    }

    #[test]
    fn an_unknown_image_lists_the_known_ones() {
        let dir = std::env::temp_dir().join(format!("nspawn-image-{}", std::process::id()));
        fs::create_dir_all(dir.join("bookworm")).unwrap();
        fs::create_dir_all(dir.join(".building")).unwrap();
        let error = find_in(&[&dir], "sid").unwrap_err();
        let found = find_in(&[&dir], "debian:bookworm").unwrap();
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(error.downcast_ref::<JobError>().unwrap().0, "no image \"sid\"; there are: bookworm");
        assert_eq!(found.name, "bookworm");
    }
}
