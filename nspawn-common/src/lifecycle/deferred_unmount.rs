//! Unmounts large layers in the background, so that a cleanup does not wait for the write-back of
//! data that is about to be deleted.
//!
//! When the file system in a file is unmounted, the kernel first writes all dirty data to the file:
//! two seconds for a gigabyte. The file may be deleted before that, since the kernel keeps a
//! deleted file for as long as it is in use.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Stdio};

use anyhow::Result;
use nix::fcntl::OFlag;
use nix::sys::statvfs::fstatvfs;
use nix::unistd::pipe2;

use crate::lifecycle::lost_writes;
use crate::machine::mounts::UnitMounts;
use crate::machine::name;
use crate::machine::paths::{LAYER_ROOT, MachinePaths};
use crate::sys::fork;
use crate::systemd::transient_unit::TransientUnit;

/// Layers smaller than this are unmounted synchronously, in bytes.
const DEFER_THRESHOLD: u64 = 256 << 20;

/// Script of the process: it waits for the end of its stdin, and becomes the command in its
/// arguments.
const SCRIPT: &str = "read -r line; exec \"$@\"";

/// Keeps the layer of a machine mounted until this is dropped. Then a process in a scope of its own
/// unmounts the layer.
///
/// The process has the mount open as its stdout, and waits for the end of its stdin. Only then it
/// moves to the scope, so that the removal of the machine does not wait for systemd.
#[derive(Debug)]
pub struct DeferredUnmount {
    /// The mount. If the process has failed, the layer is unmounted when this is closed.
    _mount: File,
    /// End of the pipe that the process reads from.
    _pipe: OwnedFd,
    /// The process. It ends only after the unmount, so this process does not wait for it.
    _holder: Child,
}

impl DeferredUnmount {
    /// Begins to defer the unmount of the machine's layer. Returns `None` if the layer is small, or
    /// if that fails.
    ///
    /// If the process is killed, the layer is unmounted at that time.
    #[must_use]
    pub fn begin(paths: &MachinePaths) -> Option<Self> {
        let mount = large_mount(paths)?;
        Self::start(paths, mount).ok()
    }

    fn start(paths: &MachinePaths, mount: File) -> Result<Self> {
        let (end, pipe) = pipe2(OFlag::O_CLOEXEC)?;
        let suffix = &name::random_uuid()?[..8];
        let argv = TransientUnit::scope()
            .options(["--quiet"])
            .named(&format!("unmount-{}-{suffix}.scope", paths.name()))
            .described(&format!(
                "Unmount of the layer of CI machine {}",
                paths.name()
            ))
            .command(["true"]);
        let mut command = Command::new("sh");
        command
            .args(["-c", SCRIPT, "sh"])
            .args(argv)
            .stdin(end)
            .stdout(mount.try_clone()?)
            .stderr(Stdio::null());
        fork::detach(&mut command);
        let holder = command.spawn()?;
        Ok(Self {
            _mount: mount,
            _pipe: pipe,
            _holder: holder,
        })
    }
}

/// Opens the machine's layer if it is a large file system in a file.
fn large_mount(paths: &MachinePaths) -> Option<File> {
    // On a full disk, the write-back must not go on unnoticed after the removal.
    if !paths.disk().exists() || lost_writes::is_nearly_full(LAYER_ROOT) {
        return None;
    }
    let mount_point = paths.disk_mount();
    // Most layers are mounted only in the mount namespace of the machine's unit, and those of
    // machines without an init also on the host.
    let mount = UnitMounts::of(paths)
        .and_then(|mounts| mounts.open(&mount_point))
        .or_else(|_| File::open(format!("/proc/1/root{}", mount_point.display())))
        .ok()?;
    let is_mounted = mount.metadata().ok()?.dev() != fs::metadata(paths.state_dir()).ok()?.dev();
    let usage = fstatvfs(&mount).ok()?;
    let used = (usage.blocks() - usage.blocks_free()) * usage.fragment_size();
    (is_mounted && used > DEFER_THRESHOLD).then_some(mount)
}
