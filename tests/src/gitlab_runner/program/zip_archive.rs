//! Zip archives of artifacts and caches, with modes and symbolic links.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use zip::write::SimpleFileOptions;
use zip::{ZipArchive, ZipWriter};

/// Writes an archive of these files below `root`.
pub fn write<To: Write + Seek>(to: To, root: &Path, files: &BTreeSet<PathBuf>) -> Result<To> {
    let mut archive = ZipWriter::new(to);
    for file in files {
        let (path, name) = (root.join(file), file.to_string_lossy());
        let metadata = fs::symlink_metadata(&path)
            .with_context(|| format!("can't read {}", path.display()))?;
        let options =
            SimpleFileOptions::default().unix_permissions(metadata.permissions().mode() & 0o7777);
        if metadata.is_symlink() {
            archive.add_symlink(&*name, fs::read_link(&path)?.to_string_lossy(), options)?;
        } else {
            archive.start_file(&*name, options)?;
            io::copy(&mut File::open(&path)?, &mut archive)?;
        }
    }
    Ok(archive.finish()?)
}

/// Extracts an archive into `root`, and returns the number of its files.
pub fn extract(from: impl Read + Seek, root: &Path) -> Result<usize> {
    let mut archive = ZipArchive::new(from)?;
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index)?;
        let name = entry
            .enclosed_name()
            .with_context(|| format!("{:?} is outside of the directory", entry.name()))?;
        let path = root.join(name);
        if entry.is_dir() {
            fs::create_dir_all(&path)?;
            continue;
        }
        fs::create_dir_all(path.parent().unwrap_or(root))?;
        let _ = fs::remove_file(&path);
        if entry.is_symlink() {
            symlink(io::read_to_string(&mut entry)?, &path)?;
        } else {
            io::copy(&mut entry, &mut File::create(&path)?)?;
            let mode = entry.unix_mode().unwrap_or(0o644) & 0o777;
            fs::set_permissions(&path, Permissions::from_mode(mode))?;
        }
    }
    Ok(archive.len())
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    #[test]
    fn extracted_files_equal_the_archived_ones() {
        let root = tempfile::tempdir().unwrap();
        let (from, to) = (root.path().join("from"), root.path().join("to"));
        fs::create_dir_all(from.join("a")).unwrap();
        let content = crate::random(100_000, 1);
        fs::write(from.join("a/b"), &content).unwrap();
        fs::set_permissions(from.join("a/b"), Permissions::from_mode(0o751)).unwrap();
        symlink("/nowhere", from.join("c")).unwrap();
        let files = ["a/b", "c"].map(PathBuf::from).into();
        let mut archive = write(Cursor::new(Vec::new()), &from, &files).unwrap();
        archive.set_position(0);
        for _ in 0..2 {
            assert_eq!(extract(archive.clone(), &to).unwrap(), 2);
        }
        assert_eq!(fs::read(to.join("a/b")).unwrap(), content);
        assert_eq!(
            fs::metadata(to.join("a/b")).unwrap().permissions().mode() & 0o777,
            0o751
        );
        assert_eq!(fs::read_link(to.join("c")).unwrap(), Path::new("/nowhere"));
    }

    #[test]
    fn path_outside_of_the_directory_is_refused() {
        let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
        archive
            .start_file("../outside", SimpleFileOptions::default())
            .unwrap();
        let archive = Cursor::new(archive.finish().unwrap().into_inner());
        assert!(extract(archive, Path::new("/nowhere")).is_err());
        assert!(extract(Cursor::new(b"no archive"), Path::new("/nowhere")).is_err());
    }
}
