//! Bind mounts with mapped owners (mount_setattr(2)).
//!
//! Id-mapped mounts need kernel 5.12, and kernel 5.19 as a layer of an overlay. systemd-nspawn's
//! `--private-users-ownership=map` can't replace this module: it maps the mount of the machine's
//! root directory, and the kernel supports no id-mapped mount of an overlay itself.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result, anyhow};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::statfs::{MSDOS_SUPER_MAGIC, statfs};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, pause, pipe2, write};

use crate::sys::mountinfo;

/// Number of user IDs and of group IDs that each machine has.
pub const RANGE_SIZE: u32 = 1 << 16;

/// Access to a mounted tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read-only.
    ReadOnly,
    /// Writable.
    Writable,
}

/// Mounts the tree at `source` on `target`, without the mounts inside it.
///
/// With `base`, the owner IDs on disk are shown as those of the range that begins at `base`.
pub fn bind(source: &Path, target: &Path, base: Option<u32>, access: Access) -> Result<()> {
    let tree = clone_tree(source, 0).with_context(|| format!("can't open {}", source.display()))?;
    let users = base
        .map(create_user_namespace)
        .transpose()
        .context("can't create a user namespace")?;
    set_attributes(&tree, users.as_ref(), access, 0).map_err(|error| explain(&error, source))?;
    attach(&tree, target).with_context(|| format!("can't mount on {}", target.display()))
}

/// Mounts the tree at `place` again on itself, read-only and with all mounts inside it.
///
/// The owner IDs on disk are shown as those of the range that begins at `base`. The tree is the
/// content of `image`, which an error names.
pub fn remap_recursively(place: &Path, image: &Path, base: u32) -> Result<()> {
    let tree = clone_tree(place, libc::AT_RECURSIVE)
        .with_context(|| format!("can't open {}", place.display()))?;
    let users = create_user_namespace(base).context("can't create a user namespace")?;
    set_attributes(&tree, Some(&users), Access::ReadOnly, libc::AT_RECURSIVE)
        .map_err(|error| explain(&error, image))?;
    attach(&tree, place).with_context(|| format!("can't mount on {}", place.display()))
}

/// Returns a detached mount of the tree at `source`, without the mounts inside it.
///
/// Its owner IDs are mapped as in the user namespace `users`. [`attach`] mounts it.
pub fn clone_mapped(source: &Path, users: &File) -> Result<OwnedFd> {
    let tree = clone_tree(source, 0).with_context(|| format!("can't open {}", source.display()))?;
    set_attributes(&tree, Some(users), Access::Writable, 0)
        .map_err(|error| explain(&error, source))?;
    Ok(tree)
}

/// Returns a detached mount of the opened file or directory, with all mounts inside it.
///
/// [`attach`] mounts it.
pub fn clone_recursively(source: BorrowedFd) -> io::Result<OwnedFd> {
    let flags = libc::AT_RECURSIVE | libc::AT_EMPTY_PATH;
    open_tree(source.as_raw_fd(), c"", flags)
}

/// Returns the mount points inside the tree at `place`, outer ones first.
///
/// Those of FAT file systems are left out: overlayfs does not accept them as a layer, and only
/// firmware reads them.
pub fn nested_mounts(place: &Path) -> Result<Vec<PathBuf>> {
    let mut points = mountinfo::mounts_below(&[place.to_owned()])?;
    let is_fat = |point: &Path| {
        statfs(point).is_ok_and(|file_system| file_system.filesystem_type() == MSDOS_SUPER_MAGIC)
    };
    points.retain(|point| point != place && !is_fat(point));
    points.sort();
    points.dedup();
    Ok(points)
}

/// Mounts a detached tree on `target`.
pub fn attach(tree: &OwnedFd, target: &Path) -> io::Result<()> {
    let target = CString::new(target.as_os_str().as_bytes())?;
    // SAFETY: move_mount(2) reads two strings that end with NUL.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    Ok(Errno::result(result).map(drop)?)
}

fn explain(error: &io::Error, source: &Path) -> Error {
    let source = source.display();
    match error.raw_os_error() {
        Some(libc::EINVAL | libc::ENOSYS | libc::EPERM) => anyhow!(
            "can't map the owners of {source}: its file system does not support that on this kernel ({error}); use ext4, \
             erofs, xfs, btrfs, or squashfs from Linux 6.2 on, or --private-users=no"
        ),
        _ => anyhow!("can't map the owners of {source}: {error}"),
    }
}

// Clones the mount of a tree. `flags` is 0, or AT_RECURSIVE to include the mounts inside it.
fn clone_tree(path: &Path, flags: libc::c_int) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    open_tree(libc::AT_FDCWD, &path, flags)
}

fn open_tree(directory: RawFd, path: &CStr, flags: libc::c_int) -> io::Result<OwnedFd> {
    let flags = libc::OPEN_TREE_CLONE | (libc::O_CLOEXEC | flags) as u32;
    // SAFETY: open_tree(2) reads a string that ends with NUL.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, directory, path.as_ptr(), flags) };
    let fd = i32::try_from(Errno::result(fd)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just created this descriptor, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

// Sets the attributes of a detached tree. `flags` is as for `clone_tree`.
fn set_attributes(
    tree: &OwnedFd,
    users: Option<&impl AsRawFd>,
    access: Access,
    flags: libc::c_int,
) -> io::Result<()> {
    // SAFETY: all fields are numbers, for which 0 is valid and means "unchanged".
    let mut attributes: libc::mount_attr = unsafe { std::mem::zeroed() };
    // An image may contain device nodes. A machine has its devices on a file system of its own.
    attributes.attr_set |= libc::MOUNT_ATTR_NODEV;
    match access {
        Access::ReadOnly => attributes.attr_set |= libc::MOUNT_ATTR_RDONLY,
        // A machine's root runs programs, even if the file system of the layers is mounted noexec
        // or nosuid. An overlay of it behaves alike.
        Access::Writable => {
            attributes.attr_clr |= libc::MOUNT_ATTR_NOEXEC | libc::MOUNT_ATTR_NOSUID
        }
    }
    if let Some(users) = users {
        attributes.attr_set |= libc::MOUNT_ATTR_IDMAP;
        attributes.userns_fd = u64::try_from(users.as_raw_fd()).unwrap_or_default();
    }
    // SAFETY: mount_setattr(2) reads an empty string, and a structure of the given size.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    Ok(Errno::result(result).map(drop)?)
}

// Creates a user namespace that maps the IDs from 0 on to the range that begins at `base`.
//
// A namespace exists as long as a process is in it or a descriptor refers to it, and a process can
// only create one for itself. So a child creates it, and ends once this process has opened it.
fn create_user_namespace(base: u32) -> Result<OwnedFd> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    // SAFETY: until its end the child only makes system calls, which are async-signal-safe.
    match unsafe { fork() }? {
        ForkResult::Child => {
            if unshare(CloneFlags::CLONE_NEWUSER).is_ok() {
                let _ = write(&writer, b"!");
                pause();
            }
            // SAFETY: _exit(2) ends the process and runs no code of this program.
            unsafe { libc::_exit(1) }
        }
        ForkResult::Parent { child } => {
            drop(writer);
            let namespace = map_ids(child, &File::from(reader), base);
            kill(child, Signal::SIGKILL)?;
            waitpid(child, None)?;
            namespace
        }
    }
}

// Waits until the child is in its user namespace, maps the IDs, and opens the namespace.
fn map_ids(child: Pid, mut created: &File, base: u32) -> Result<OwnedFd> {
    created
        .read_exact(&mut [0])
        .context("the kernel refuses user namespaces; allow them (sysctl -w user.max_user_namespaces=10000), \
             or use --private-users=no")?;
    for kind in ["uid_map", "gid_map"] {
        fs::write(
            format!("/proc/{child}/{kind}"),
            format!("0 {base} {RANGE_SIZE}"),
        )?;
    }
    Ok(File::open(format!("/proc/{child}/ns/user"))?.into())
}
