//! The hidden launch form: the unit's process, until it becomes systemd-nspawn.
//!
//! What is mounted here lives in the unit's own mount namespace (`PrivateMounts=yes`): the kernel
//! takes it away with the unit's last process, whatever ends that.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nspawn_common::name::MachineName;
use nspawn_common::paths::MachinePaths;

/// The argument that asks for it: `--launch MACHINE IMAGE-DIRECTORY COMMAND…`.
pub const OPTION: &str = "--launch";

/// The command that launches `command` for the machine `name`.
pub fn command(name: &MachineName, image: &Path, command: Vec<OsString>) -> Result<Vec<OsString>> {
    let program = std::env::current_exe().context("can't tell this program's own path")?;
    let mut argv = vec![program.into(), OPTION.into(), name.as_str().into(), image.into()];
    argv.extend(command);
    Ok(argv)
}

/// Mounts the machine's root and becomes `COMMAND`.
pub fn launch(arguments: &[OsString]) -> Result<()> {
    let [name, image, program, rest @ ..] = arguments else { bail!("{OPTION} is for the machine's unit alone") };
    let paths = MachinePaths::new(&MachineName::new(name)?);
    refuse_the_hosts_mounts()?;
    mount_root(&paths, Path::new(image))?;
    let error = Command::new(program)
        .args(rest)
        // No file system of nspawn's own on /tmp either: see the mask of tmp.mount.
        .env("SYSTEMD_NSPAWN_TMPFS_TMP", "0")
        .exec();
    Err(error).with_context(|| format!("can't start {program:?}"))
}

fn refuse_the_hosts_mounts() -> Result<()> {
    let namespace =
        |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt")).context("can't tell mount namespaces apart");
    if namespace("self")? == namespace("1")? {
        bail!("{OPTION} would mount into the host: it is for the machine's unit alone");
    }
    Ok(())
}

fn mount_root(paths: &MachinePaths, image: &Path) -> Result<()> {
    // By this mount every path in the overlay's options is one of ours, free of commas and colons.
    let lower = paths.image_mount();
    mount(Some(image), &lower, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("can't mount the image {}", image.display()))?;
    let (upper, work) = (paths.upper(), paths.work());
    // volatile: no syncs for a layer that is thrown away (kernel 5.10).
    let options = [
        OsStr::new("volatile,lowerdir="),
        lower.as_ref(),
        OsStr::new(",upperdir="),
        upper.as_ref(),
        OsStr::new(",workdir="),
        work.as_ref(),
    ];
    let options: OsString = options.into_iter().collect();
    mount(Some("overlay"), &paths.root_mount(), Some("overlay"), MsFlags::empty(), Some(options.as_bytes()))
        .with_context(|| {
            format!(
                "can't mount the overlay of {}; its file system must be one that overlayfs can write to",
                upper.display()
            )
        })
}
