//! Finds images by name.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::fcntl::Flock;

use crate::command::flock;
use crate::command::flock::Kind;
use crate::error::Failure;
use crate::image::{stack, version};
use crate::sys::fs::if_present;

/// Number of attempts to find an image that is removed meanwhile.
const LOCK_ATTEMPTS: u32 = 10;
/// Time limit for another process that removes the image.
const LOCK_LIMIT: Duration = Duration::from_secs(60);

/// Directory of the locks of images, which `nspawn-image` uses too.
pub const LOCK_ROOT: &str = "/run/nspawn-image";

/// Directories that systemd-machined searches, in its order (systemd 252 to 262).
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
    /// Name of the image, as in `machinectl list-images`.
    pub name: String,
    /// The directory, the disk image or the stack of layers, without symbolic links.
    pub path: PathBuf,
    /// Directories and disk images whose overlay is the image, the lowest one first. Only a stack has
    /// others than its own path.
    pub layers: Vec<PathBuf>,
}

impl Image {
    /// Returns whether a disk image has to be mounted for this image.
    #[must_use]
    pub fn has_disks(&self) -> bool {
        self.layers.iter().any(|layer| layer.is_file())
    }

    /// Returns the directory with the whole tree, or `None` if the tree has to be mounted first.
    #[must_use]
    pub fn tree(&self) -> Option<&Path> {
        match &*self.layers {
            [only] if only.is_dir() => Some(only),
            _ => None,
        }
    }

    /// Returns the image's name, and its version if it has one.
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

/// Finds the image for a plain name, or for a docker-style reference by the rule of [`candidates`].
///
/// As for systemd-machined, a name stands for a directory of that name, for `NAME.raw`, for a stack of
/// layers `NAME.mstack/`, or for the newest version in `NAME.v/` or `NAME.raw.v/`, in this order, in the
/// first directory that has any of these. Other files of such a name are passed over.
///
/// # Errors
/// Fails with the job's error if no image fits, and lists the existing images.
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
        // A file that has the name and is not an image is an error, even if a later name would fit.
        if let Some(why) = refused {
            bail!(Failure::job(why));
        }
    }
    bail!(Failure::job(unknown(directories, reference, &names)))
}

/// Finds an image like [`find`], and locks it against removal.
pub fn find_and_lock(reference: &str) -> Result<(Image, ImageLock)> {
    for _ in 0..LOCK_ATTEMPTS {
        let image = find(reference)?;
        if let Some(lock) = ImageLock::acquire(&image)? {
            return Ok((image, lock));
        }
    }
    bail!("the image {reference} is being removed; try again")
}

/// A shared lock of an image and its layers. While it is held `nspawn-image` does not remove them.
///
/// `nspawn-image` takes an exclusive lock to remove an image, and also checks the states of
/// machines. The lock is of a file that only root can open: any user who can open a file can lock
/// it, and keep everybody else waiting. An image may be a directory that is open to all.
#[derive(Debug)]
pub struct ImageLock {
    _files: Vec<Flock<File>>,
}

impl ImageLock {
    /// Waits until no process removes the image. Returns `None` if the image is missing by then.
    fn acquire(image: &Image) -> Result<Option<Self>> {
        let own = Some(&image.path).filter(|path| !image.layers.contains(path));
        let files = own
            .into_iter()
            .chain(&image.layers)
            .map(|path| Self::lock(path));
        let files: Option<Vec<_>> = files.collect::<Result<_>>()?;
        Ok(files.map(|files| Self { _files: files }))
    }

    fn lock(path: &Path) -> Result<Option<Flock<File>>> {
        let image = if_present(File::open(path))
            .with_context(|| format!("can't open the image {}", path.display()))?;
        let Some(image) = image else {
            return Ok(None);
        };
        let failure = || format!("can't lock the image {}", path.display());
        let lock_path = lock_path(&image).with_context(failure)?;
        let file = open_lock(&lock_path).with_context(failure)?;
        let file = flock::lock(file, Kind::Shared, LOCK_LIMIT).with_context(failure)?;
        let is_current = flock::is_at(&image, path) && flock::is_at(&file, &lock_path);
        Ok(is_current.then_some(file))
    }
}

/// Returns the path of an image's lock, by the same rule as `tree_lock` in `nspawn-image`.
fn lock_path(image: &File) -> io::Result<PathBuf> {
    let image = image.metadata()?;
    let name = format!(".tree-{}-{}", image.dev(), image.ino());
    Ok(Path::new(LOCK_ROOT).join(name))
}

/// Opens the lock of an image, and creates it if it is missing, with its directory.
fn open_lock(path: &Path) -> io::Result<File> {
    if let Some(file) = if_present(flock::open_private(path))? {
        return Ok(file);
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(LOCK_ROOT)?;
    flock::open_private(path)
}

/// Returns the image names that `reference` may stand for, best first:
///
/// 1. the reference as it is;
/// 2. the last component, with the tag after a dash: `registry.example/x/debian:bookworm` is
///    `debian-bookworm`; the tag `latest` and a digest are left out;
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

/// Returns the image of this name in the directory. Sets `refused` to the reason why a file of that
/// name is not an image, unless it has a reason already.
fn open(directory: &Path, name: &str, refused: &mut Option<String>) -> Result<Option<Image>> {
    for suffix in ["", ".raw", stack::SUFFIX, ".v", ".raw.v"] {
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
                format!("can't use {} as an image: {NO_IMAGE}", path.display()),
            ),
        };
        if let Some(path) = found {
            let real = fs::canonicalize(&path).with_context(|| {
                format!("can't resolve the path of the image {}", path.display())
            })?;
            let layers = if suffix == stack::SUFFIX {
                stack::layers(&real)?
            } else {
                vec![real.clone()]
            };
            return Ok(Some(Image {
                name: name.to_owned(),
                path: real,
                layers,
            }));
        }
        refused.get_or_insert(why);
    }
    Ok(None)
}

const NO_IMAGE: &str = "it must be a directory NAME, a file NAME.raw, a directory NAME.v or NAME.raw.v of versions, or \
    a directory NAME.mstack of layers";

fn is_of_kind(path: &Path, suffix: &str) -> bool {
    match suffix {
        "" | stack::SUFFIX => path.is_dir(),
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
            "this host has no images yet; create one: nspawn-image create NAME".to_owned()
        }
        names => format!("this host has these images: {}", names.join(", ")),
    };
    let others: Vec<_> = tried
        .iter()
        .filter(|name| *name != reference)
        .map(String::as_str)
        .collect();
    let looked = if others.is_empty() {
        String::new()
    } else {
        format!(" (also tried: {})", others.join(", "))
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

/// Returns the image's name of a directory entry, if the entry is an image.
fn name_of(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let name = match (path.is_dir(), file.strip_suffix(".v")) {
        (true, Some(versions)) => versions.strip_suffix(".raw").unwrap_or(versions),
        (true, None) => file.strip_suffix(stack::SUFFIX).unwrap_or(file),
        (false, _) => file.strip_suffix(".raw").filter(|_| path.is_file())?,
    };
    is_image_name(name).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_style_references_have_candidates() {
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
    fn references_that_are_not_file_names_have_no_candidates() {
        for reference in ["", ".", "..", "a/..", "/", ".hidden", "a\nb", "../../etc"] {
            let names = candidates(reference);
            assert!(
                names.iter().all(|name| name == "etc"),
                "{reference:?} gave {names:?}"
            );
        }
    }

    #[test]
    fn error_of_an_unknown_image_lists_the_known_ones() {
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
        assert!(disk.has_disks() && !chosen.has_disks());
        assert!(disk.tree().is_none() && chosen.tree() == Some(&*chosen.path));
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(
            error.to_string(),
            "no image \"sid\"; this host has these images: bookworm, disk, trixie"
        );
        assert_eq!((found.name, disk.name), ("bookworm".into(), "disk".into()));
        assert!(
            newest.path.ends_with("trixie.v/trixie_2")
                && chosen.path.ends_with("trixie.v/trixie_1")
        );
        assert!(
            file.to_string().contains("as an image: it must be"),
            "{file}"
        );
    }
}
