//! Images that consist of layers: directories `NAME.mstack` (systemd.mstack(7), since systemd 260).
//!
//! The overlay of the layers is the image. An entry `layer@ID` is a directory, and `layer@ID.raw` a
//! disk image, or a symbolic link to one. The layer with the highest ID, compared as a version, is on
//! top. Other entries of systemd.mstack(7) are refused: they add mounts, or files that only an
//! overlay with other options shows.

use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result, anyhow};

use crate::error::Failure;
use crate::image::version;

/// Ending of the name of such an image.
pub const SUFFIX: &str = ".mstack";
/// Maximum number of layers of an overlay (`OVL_MAX_STACK` in Linux).
const MAX_LAYERS: usize = 500;

/// Returns the layers of the image at `path`, the lowest one first, without symbolic links.
///
/// # Errors
/// Fails with the job's error if the image has no layer or more than an overlay can have, if an entry
/// is not a layer, and if two layers have the same version or common files.
pub fn layers(path: &Path) -> Result<Vec<PathBuf>> {
    read_layers(path).map_err(|error| {
        Failure::job(format!("can't use the image {}: {error:#}", path.display())).into()
    })
}

fn read_layers(path: &Path) -> Result<Vec<PathBuf>> {
    let mut layers = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with('.') {
            let layer = Layer::read(&name, &entry.path())
                .with_context(|| format!("its entry {name} can't be a layer"))?;
            layers.push(layer);
        }
    }
    if layers.is_empty() || layers.len() > MAX_LAYERS {
        return Err(anyhow!(
            "it has {} layers, and must have 1 to {MAX_LAYERS} entries layer@ID",
            layers.len()
        ));
    }
    layers.sort_by(|one, other| version::compare(&one.id, &other.id));
    check_pairs(&layers)?;
    Ok(layers.into_iter().map(|layer| layer.path).collect())
}

struct Layer {
    id: String,
    path: PathBuf,
}

impl Layer {
    fn read(name: &str, path: &Path) -> Result<Self> {
        let id = name
            .strip_prefix("layer@")
            .filter(|id| !id.ends_with(".v"))
            .context("only layer@ID and layer@ID.raw are supported")?;
        let path = fs::canonicalize(path)?;
        let (id, is_usable) = match id.strip_suffix(".raw") {
            Some(id) => (id, path.is_file()),
            None => (id, path.is_dir()),
        };
        if !is_usable {
            return Err(anyhow!(
                "it must be a directory, or a disk image whose name ends with .raw"
            ));
        }
        Ok(Self {
            id: id.to_owned(),
            path,
        })
    }
}

/// Refuses layers of the same version, and layers with common files: overlayfs does not mount these.
fn check_pairs(sorted: &[Layer]) -> Result<(), Error> {
    for pair in sorted.windows(2) {
        if version::compare(&pair[0].id, &pair[1].id) == Ordering::Equal {
            return Err(anyhow!("two of its layers have the version {}", pair[0].id));
        }
    }
    let mut paths: Vec<_> = sorted.iter().map(|layer| &layer.path).collect();
    // Paths are compared by their components, so what is inside a directory follows it.
    paths.sort();
    match paths.windows(2).find(|pair| pair[1].starts_with(pair[0])) {
        Some(pair) => Err(anyhow!(
            "its layers {} and {} have common files",
            pair[0].display(),
            pair[1].display()
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn stack(name: &str, directories: &[&str]) -> PathBuf {
        let path = std::env::temp_dir().join(format!("nspawn-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        for directory in directories {
            fs::create_dir_all(path.join(directory)).unwrap();
        }
        path
    }

    #[test]
    fn layers_are_ordered_as_versions() {
        let path = stack("layers", &["layer@10", "layer@9", ".hidden"]);
        fs::write(path.join("layer@2.raw"), "").unwrap();
        let layers = layers(&path).unwrap();
        let names: Vec<_> = layers
            .iter()
            .map(|layer| layer.file_name().unwrap().to_str().unwrap())
            .collect();
        assert_eq!(names, ["layer@2.raw", "layer@9", "layer@10"]);
        fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn unusable_stacks_are_refused() {
        for (name, directories, words) in [
            ("empty", &[][..], "it has 0 layers"),
            ("rw", &["layer@1", "rw"], "its entry rw can't be a layer"),
            ("bind", &["layer@1", "bind@var"], "only layer@ID"),
            ("versions", &["layer@1.v"], "only layer@ID"),
            ("raw", &["layer@1.raw"], "it must be a directory, or"),
            ("same", &["layer@1", "layer@01"], "have the version"),
        ] {
            let path = stack(name, directories);
            let error = layers(&path).unwrap_err();
            fs::remove_dir_all(path).unwrap();
            assert!(error.to_string().contains(words), "{error}");
        }
        for (name, target, words) in [
            ("dangling", "missing", "its entry layer@2 can't be a layer"),
            ("twice", "layer@1", "have common files"),
            ("inside", "layer@1/usr", "have common files"),
        ] {
            let path = stack(name, &["layer@1/usr"]);
            symlink(target, path.join("layer@2")).unwrap();
            let error = layers(&path).unwrap_err();
            fs::remove_dir_all(path).unwrap();
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
