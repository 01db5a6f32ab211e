//! Mounts with owners of their own: id-mapped ones (`mount_setattr(2)`, kernel 5.12; as a layer of an
//! overlay 5.19).

use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::command;
use crate::config::private_users::RANGE_SIZE;
use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::statfs::{MSDOS_SUPER_MAGIC, statfs};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, pause};

/// How long mounting a file system may take.
const LIMIT: Duration = Duration::from_secs(60);

/// What may be done to a tree that is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read-only.
    ReadOnly,
    /// Writable.
    Writable,
}

/// Shows the tree at `source` at `target`, without what is mounted in it. With `base`, the owners that it has on
/// disk are shown as the users of the range that begins there.
pub fn show(source: &Path, target: &Path, base: Option<u32>, access: Access) -> Result<()> {
    let tree = clone_tree(source, 0).with_context(|| format!("can't open {}", source.display()))?;
    let users = base
        .map(user_namespace)
        .transpose()
        .context("can't make a user namespace")?;
    set_attributes(&tree, users.as_ref(), access, 0).map_err(|error| explain(&error, source))?;
    attach(&tree, target).with_context(|| format!("can't mount on {}", target.display()))
}

/// The tree at `source`, without what is mounted in it and mounted nowhere yet, with its owners as `users` has them.
pub fn tree(source: &Path, users: &File) -> Result<OwnedFd> {
    let tree = clone_tree(source, 0).with_context(|| format!("can't open {}", source.display()))?;
    set_attributes(&tree, Some(users), Access::Writable, 0)
        .map_err(|error| explain(&error, source))?;
    Ok(tree)
}

/// Shows the tree at `place`, the content of `image`, there, with all that is mounted in it, read-only and with the
/// owners as of [`show`].
pub fn show_all(place: &Path, image: &Path, base: u32) -> Result<()> {
    let tree = clone_tree(place, libc::AT_RECURSIVE)
        .with_context(|| format!("can't open {}", place.display()))?;
    let users = user_namespace(base).context("can't make a user namespace")?;
    set_attributes(&tree, Some(&users), Access::ReadOnly, libc::AT_RECURSIVE)
        .map_err(|error| explain(&error, image))?;
    attach(&tree, place).with_context(|| format!("can't mount on {}", place.display()))
}

/// What is mounted in the tree at `place`, outer ones first; but for what overlayfs takes no layer of, which only
/// firmware reads.
pub fn below(place: &Path) -> Result<Vec<PathBuf>> {
    let mut points = crate::sys::mountinfo::below(&[place.to_owned()])?;
    let is_for_firmware = |point: &Path| {
        statfs(point).is_ok_and(|there| there.filesystem_type() == MSDOS_SUPER_MAGIC)
    };
    points.retain(|point| point != place && !is_for_firmware(point));
    points.sort();
    points.dedup();
    Ok(points)
}

fn explain(error: &io::Error, source: &Path) -> anyhow::Error {
    match error.raw_os_error() {
        Some(libc::EINVAL | libc::ENOSYS | libc::EPERM) => anyhow::anyhow!(
            "the file system of {} can't be shown to a user namespace on this kernel ({error}); have images on one \
             that can, such as ext4, erofs, xfs or btrfs (squashfs can from Linux 6.2 on), or make machines without: \
             --private-users=no",
            source.display()
        ),
        _ => anyhow::anyhow!("can't show {}: {error}", source.display()),
    }
}

/// Mounts the file system in the file `disk`; where it is mounted already, by the same loop device (mount(8)).
pub fn mount_disk(disk: &Path, target: &Path) -> Result<()> {
    // The tables of inodes need not be written before they are used, by a machine that lives for minutes.
    let options = ["mount", "-t", "ext4", "-o", "loop,noatime,noinit_itable"].map(OsStr::new);
    let command = options
        .into_iter()
        .chain([disk.as_os_str(), target.as_os_str()])
        .map(OsString::from);
    command::run_ok(&command.collect::<Vec<_>>(), LIMIT).map(drop)
}

// `depth` is 0, or AT_RECURSIVE for what is mounted in it too.
fn clone_tree(path: &Path, depth: libc::c_int) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let flags = libc::OPEN_TREE_CLONE | (libc::O_CLOEXEC | depth) as u32;
    // SAFETY: open_tree(2) reads a string that ends with NUL, which `path` is.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    descriptor(fd)
}

fn set_attributes(
    tree: &OwnedFd,
    users: Option<&impl AsRawFd>,
    access: Access,
    depth: libc::c_int,
) -> io::Result<()> {
    // SAFETY: all of its fields are numbers, for which 0 is valid and means 'as it is'.
    let mut attributes: libc::mount_attr = unsafe { std::mem::zeroed() };
    match access {
        Access::ReadOnly => attributes.attr_set |= libc::MOUNT_ATTR_RDONLY,
        // A machine's root runs programs, whatever the host allows where it has layers: as an overlay there does.
        Access::Writable => {
            attributes.attr_clr |= libc::MOUNT_ATTR_NOEXEC | libc::MOUNT_ATTR_NOSUID
        }
    }
    if let Some(users) = users {
        attributes.attr_set |= libc::MOUNT_ATTR_IDMAP;
        attributes.userns_fd = u64::try_from(users.as_raw_fd()).unwrap_or_default();
    }
    let size = size_of::<libc::mount_attr>();
    let (fd, flags) = (tree.as_raw_fd(), libc::AT_EMPTY_PATH | depth);
    // SAFETY: mount_setattr(2) reads an empty string, and a struct of the size that it is told.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd,
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size,
        )
    };
    Ok(Errno::result(done).map(drop)?)
}

/// Mounts a tree.
pub fn attach(tree: &OwnedFd, target: &Path) -> io::Result<()> {
    let target = CString::new(target.as_os_str().as_bytes())?;
    let (fd, flags) = (tree.as_raw_fd(), libc::MOVE_MOUNT_F_EMPTY_PATH);
    // SAFETY: move_mount(2) reads two strings that end with NUL.
    let done = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            fd,
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            flags,
        )
    };
    Ok(Errno::result(done).map(drop)?)
}

fn descriptor(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(Errno::result(fd)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

// A user namespace lives in a process or a descriptor, and only its process can make it.
fn user_namespace(base: u32) -> Result<OwnedFd> {
    let (told, tell) = nix::unistd::pipe()?;
    // SAFETY: this process has a single thread, so the child may do all that a program may.
    match unsafe { fork() }? {
        ForkResult::Child => {
            if unshare(CloneFlags::CLONE_NEWUSER).is_ok() {
                let _ = nix::unistd::write(&tell, b"!");
                pause();
            }
            std::process::exit(1)
        }
        ForkResult::Parent { child } => {
            drop(tell);
            let namespace = map(child, &File::from(told), base);
            kill(child, Signal::SIGKILL)?;
            waitpid(child, None)?;
            namespace
        }
    }
}

fn map(child: Pid, mut told: &File, base: u32) -> Result<OwnedFd> {
    io::Read::read_exact(&mut told, &mut [0])
        .context("the kernel refuses user namespaces; see --private-users=no")?;
    for kind in ["uid_map", "gid_map"] {
        fs::write(
            format!("/proc/{child}/{kind}"),
            format!("0 {base} {RANGE_SIZE}"),
        )?;
    }
    Ok(File::open(format!("/proc/{child}/ns/user"))?.into())
}
