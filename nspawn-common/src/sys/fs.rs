//! File system operations that std lacks.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{FileStat, SFlag, fstat, makedev};

/// File of the device that is always empty (null(4)).
pub const NULL_DEVICE: &str = "/dev/null";

/// Returns whether `fd` is the null device, under whichever name.
pub fn is_null_device(fd: impl AsFd) -> bool {
    fstat(fd).is_ok_and(|stat| is_of_type(&stat, SFlag::S_IFCHR) && stat.st_rdev == makedev(1, 3))
}

/// Returns whether `fd` is a regular file.
pub fn is_regular_file(fd: impl AsFd) -> bool {
    fstat(fd).is_ok_and(|stat| is_of_type(&stat, SFlag::S_IFREG))
}

fn is_of_type(stat: &FileStat, kind: SFlag) -> bool {
    stat.st_mode & SFlag::S_IFMT.bits() == kind.bits()
}

/// Reads the first `limit` bytes of a regular file, which a machine may have replaced.
///
/// # Errors
/// Fails if the file is of another type. Opening a FIFO or a terminal there has no effect.
pub fn read_regular_file(path: impl AsRef<Path>, limit: u64) -> io::Result<Vec<u8>> {
    let file = File::options()
        .read(true)
        .custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits())
        .open(path)?;
    if !is_regular_file(&file) {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Removes the file at `path`. A missing file is not an error.
pub fn remove_file_if_present(path: &Path) -> Result<()> {
    ignore_missing(fs::remove_file(path))
        .with_context(|| format!("can't remove {}", path.display()))
}

/// Turns the error that a file is missing into success.
pub fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    if_present(result).map(|_| ())
}

/// Turns the error that a file is missing into `None`.
pub fn if_present<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// Writes a file atomically: other processes see the old content or the new one.
///
/// The file has mode 0644, so the directory's mode must restrict access to secrets.
pub fn write_atomic(path: &Path, content: &[u8]) -> Result<()> {
    let new = path.with_extension("new");
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o644)
            .open(&new)?;
        file.write_all(content)?;
        fs::rename(&new, path)
    };
    write().with_context(|| format!("can't write {}", path.display()))
}

/// Mounts the file or directory `source` at `target` as well.
pub fn bind_mount(source: &Path, target: &Path) -> nix::Result<()> {
    mount(
        Some(source),
        target,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
}

/// Opens a file below `directory` without following any link and without crossing a mount point.
///
/// Use this in directories that a machine can write to.
pub fn open_beneath(directory: impl AsFd, path: &str, flags: OFlag) -> nix::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_BENEATH
        | ResolveFlag::RESOLVE_NO_SYMLINKS
        | ResolveFlag::RESOLVE_NO_XDEV;
    let how = OpenHow::new()
        .flags(flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(resolve);
    openat2(directory, path, how)
}

/// Opens a file below `root`, with links resolved as if `root` were the root directory.
pub fn open_in_root(root: impl AsFd, path: &str, flags: OFlag) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT);
    openat2(root, path, how)
}

/// Reads the first `limit` bytes of a regular file below `root`, with links resolved as if `root`
/// were the root directory.
///
/// # Errors
/// Fails if the file is of another type. A device or FIFO there is not opened.
pub fn read_in_root(root: impl AsFd, path: &str, limit: u64) -> io::Result<Vec<u8>> {
    let place = open_in_root(root, path, OFlag::O_PATH)?;
    if !is_regular_file(&place) {
        return Err(io::Error::other("it is not a regular file"));
    }
    read_regular_file(format!("/proc/self/fd/{}", place.as_raw_fd()), limit)
}

/// Opens a file or directory below `root` as a place, for which it needs no permissions.
///
/// Links are resolved as if `root` were the root directory, or are errors (`ELOOP`) without
/// `follows_links`.
pub fn open_place(root: impl AsFd, path: &Path, follows_links: bool) -> nix::Result<OwnedFd> {
    let mut resolve = ResolveFlag::RESOLVE_IN_ROOT;
    resolve.set(ResolveFlag::RESOLVE_NO_SYMLINKS, !follows_links);
    let open = |flags| {
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC | flags;
        openat2(&root, path, OpenHow::new().flags(flags).resolve(resolve))
    };
    // At an automount point, the kernel mounts only if a directory is asked for.
    match open(OFlag::O_DIRECTORY) {
        Err(Errno::ENOTDIR) => open(OFlag::empty()),
        opened => opened,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    use super::*;

    fn temporary_directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("nspawn-fs-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn missing_file_is_removed_without_error() {
        let directory = temporary_directory("remove");
        let file = directory.join("file");
        fs::write(&file, "x").unwrap();
        remove_file_if_present(&file).unwrap();
        remove_file_if_present(&file).unwrap();
        assert!(remove_file_if_present(&directory).is_err());
        fs::remove_dir(&directory).unwrap();
    }

    #[test]
    fn file_is_replaced_atomically() {
        let directory = temporary_directory("write");
        let file = directory.join("file");
        write_atomic(&file, b"long content").unwrap();
        write_atomic(&file, b"new").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"new");
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn links_are_refused_beneath_and_resolved_in_a_root() {
        let directory = temporary_directory("open");
        fs::write(directory.join("file"), "x").unwrap();
        symlink("/file", directory.join("link")).unwrap();
        let root = File::open(&directory).unwrap();
        assert!(open_beneath(&root, "file", OFlag::O_RDONLY).is_ok());
        assert!(open_beneath(&root, "link", OFlag::O_RDONLY).is_err());
        assert!(open_beneath(&root, "../file", OFlag::O_RDONLY).is_err());
        assert!(open_in_root(&root, "link", OFlag::O_RDONLY).is_ok());
        assert!(open_in_root(&root, "../../file", OFlag::O_RDONLY).is_ok());
        assert_eq!(read_in_root(&root, "../link", 9).unwrap(), b"x");
        assert!(read_in_root(&root, ".", 9).is_err());
        assert!(open_place(&root, Path::new("/link"), true).is_ok());
        let refused = open_place(&root, Path::new("/link"), false);
        assert_eq!(refused.unwrap_err(), Errno::ELOOP);
        fs::remove_dir_all(&directory).unwrap();
    }
}
