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

use anyhow::{Context, Error, Result, anyhow, bail};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::statfs::{MSDOS_SUPER_MAGIC, statfs};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, pause, pipe2, write};

use crate::sys::mountinfo;

/// A range of user IDs of the host, and of group IDs with the same numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// First ID.
    pub base: u32,
    /// Number of IDs.
    pub size: u32,
}

impl IdRange {
    /// Returns whether the range has this ID.
    #[must_use]
    pub fn contains(self, id: u32) -> bool {
        id.checked_sub(self.base)
            .is_some_and(|offset| offset < self.size)
    }
}

/// The owner of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// ID of the user.
    pub user: u32,
    /// ID of the group.
    pub group: u32,
}

/// The user and the group root.
pub const ROOT: Owner = Owner { user: 0, group: 0 };

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
/// With `ids`, the owner IDs on disk from 0 on are shown as those of the range.
pub fn bind(source: &Path, target: &Path, ids: Option<IdRange>, access: Access) -> Result<()> {
    let tree = clone_tree(source, 0).with_context(|| format!("can't open {}", source.display()))?;
    let users = ids
        .map(|ids| create_user_namespace(&range_maps(ROOT, ids)))
        .transpose()?;
    let attributes = image_attributes(users.as_ref(), access);
    set_attributes(&tree, &attributes, 0).map_err(|error| explain(&error, source))?;
    attach(&tree, target).with_context(|| format!("can't mount on {}", target.display()))
}

/// Mounts the tree at `place` again on itself, read-only and with all mounts inside it.
///
/// The owner IDs on disk from 0 on are shown as those of the range `ids`. The tree is the content
/// of `image`, which an error names.
pub fn remap_recursively(place: &Path, image: &Path, ids: IdRange) -> Result<()> {
    let tree = clone_tree(place, libc::AT_RECURSIVE)
        .with_context(|| format!("can't open {}", place.display()))?;
    let users = create_user_namespace(&range_maps(ROOT, ids))?;
    let attributes = image_attributes(Some(&users), Access::ReadOnly);
    set_attributes(&tree, &attributes, libc::AT_RECURSIVE)
        .map_err(|error| explain(&error, image))?;
    attach(&tree, place).with_context(|| format!("can't mount on {}", place.display()))
}

/// Returns a detached mount of the tree at `source`, without the mounts inside it.
///
/// The owner IDs on disk from 0 on are shown as those of the range `ids`. The IDs of root and those
/// of `user`, which count from the range's first ID, are exchanged. [`attach`] mounts the tree.
/// Programs in it get no rights of their owners: a user must not leave one that is root's later.
///
/// # Errors
/// Fails if `user` is outside of the range, or if the file system does not support mapped owners.
pub fn clone_for_user(source: &Path, ids: IdRange, user: Owner) -> Result<OwnedFd> {
    if let Some(id) = [user.user, user.group].iter().find(|id| **id >= ids.size) {
        bail!(
            "the machine has no user or group with the ID {id}, but only those below {}",
            ids.size
        );
    }
    let tree = clone_tree(source, 0).with_context(|| format!("can't open {}", source.display()))?;
    let maps = [user.user, user.group].map(|id| exchanged_map(id, ids));
    let users = create_user_namespace(&maps)?;
    let mut attributes = image_attributes(Some(&users), Access::Writable);
    attributes.attr_set |= libc::MOUNT_ATTR_NOSUID;
    set_attributes(&tree, &attributes, 0).map_err(|error| explain(&error, source))?;
    Ok(tree)
}

/// Returns a detached mount of the opened file or directory, with or without the mounts inside it.
///
/// [`attach`] mounts it.
pub fn clone_opened(source: BorrowedFd, is_recursive: bool) -> io::Result<OwnedFd> {
    let recursive = if is_recursive { libc::AT_RECURSIVE } else { 0 };
    open_tree(source.as_raw_fd(), c"", libc::AT_EMPTY_PATH | recursive)
}

/// Shows the files of `owner` in a detached tree, and in all mounts inside it, as those of the host's
/// user `user` and of the group with the same number. Files of other owners have no owner.
///
/// # Errors
/// Fails with `EINVAL` if a file system in the tree does not support that.
pub fn map_owner(tree: &OwnedFd, owner: Owner, user: u32) -> Result<()> {
    let ids = IdRange {
        base: user,
        size: 1,
    };
    let users = create_user_namespace(&range_maps(owner, ids))?;
    Ok(set_attributes(tree, &mapping(&users), libc::AT_RECURSIVE)?)
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

// Returns the attributes of the mount of an image or a layer.
fn image_attributes(users: Option<&impl AsRawFd>, access: Access) -> libc::mount_attr {
    let mut attributes = users.map_or(UNCHANGED, mapping);
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
    attributes
}

// Returns the attributes that map owners as in the user namespace, and change nothing else.
fn mapping(users: &impl AsRawFd) -> libc::mount_attr {
    libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        userns_fd: u64::try_from(users.as_raw_fd()).unwrap_or_default(),
        ..UNCHANGED
    }
}

const UNCHANGED: libc::mount_attr = libc::mount_attr {
    attr_set: 0,
    attr_clr: 0,
    propagation: 0,
    userns_fd: 0,
};

// Sets the attributes of a detached tree. `flags` is as for `clone_tree`.
fn set_attributes(
    tree: &OwnedFd,
    attributes: &libc::mount_attr,
    flags: libc::c_int,
) -> io::Result<()> {
    // SAFETY: mount_setattr(2) reads an empty string, and a structure of the given size.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | flags,
            std::ptr::from_ref(attributes),
            size_of::<libc::mount_attr>(),
        )
    };
    Ok(Errno::result(result).map(drop)?)
}

// Returns the maps of user IDs and group IDs that map the IDs from those of `owner` on to the range.
fn range_maps(owner: Owner, ids: IdRange) -> [String; 2] {
    [owner.user, owner.group].map(|first| format!("{first} {} {}", ids.base, ids.size))
}

// Returns a map of the IDs from 0 on to the range, in which 0 and `id` are exchanged.
fn exchanged_map(id: u32, ids: IdRange) -> String {
    let line = |first: u32, shown: u32, count: u32| match count {
        0 => String::new(),
        _ => format!("{first} {} {count}\n", ids.base + shown),
    };
    if id == 0 {
        return line(0, 0, ids.size);
    }
    let next = id + 1;
    [
        line(0, id, 1),
        line(1, 1, id - 1),
        line(id, 0, 1),
        line(next, next, ids.size - next),
    ]
    .concat()
}

// Creates a user namespace with these maps of user IDs and group IDs (user_namespaces(7)).
//
// A namespace exists as long as a process is in it or a descriptor refers to it, and a process can
// only create one for itself. So a child creates it, and ends once this process has opened it.
fn create_user_namespace(maps: &[String; 2]) -> Result<OwnedFd> {
    fork_user_namespace(maps).context("can't create a user namespace")
}

fn fork_user_namespace(maps: &[String; 2]) -> Result<OwnedFd> {
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
            let namespace = map_ids(child, &File::from(reader), maps);
            kill(child, Signal::SIGKILL)?;
            waitpid(child, None)?;
            namespace
        }
    }
}

// Waits until the child is in its user namespace, maps the IDs, and opens the namespace.
fn map_ids(child: Pid, mut created: &File, maps: &[String; 2]) -> Result<OwnedFd> {
    created
        .read_exact(&mut [0])
        .context("the kernel refuses user namespaces; allow them (sysctl -w user.max_user_namespaces=10000), \
             or use --private-users=no")?;
    for (kind, map) in ["uid_map", "gid_map"].iter().zip(maps) {
        fs::write(format!("/proc/{child}/{kind}"), map)?;
    }
    Ok(File::open(format!("/proc/{child}/ns/user"))?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_and_the_user_are_exchanged_and_all_others_kept() {
        let ids = IdRange {
            base: 1000,
            size: 10,
        };
        let map = |id| exchanged_map(id, ids);
        assert_eq!(map(0), "0 1000 10\n");
        assert_eq!(map(1), "0 1001 1\n1 1000 1\n2 1002 8\n");
        assert_eq!(map(4), "0 1004 1\n1 1001 3\n4 1000 1\n5 1005 5\n");
        assert_eq!(map(9), "0 1009 1\n1 1001 8\n9 1000 1\n");
    }
}
