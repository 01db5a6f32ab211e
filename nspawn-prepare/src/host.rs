//! What the host must have.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nspawn_common::lifecycle;
use nspawn_common::tool::{self, argv};

/// How long looking something up may take.
pub const LOOK_LIMIT: Duration = Duration::from_secs(10);

/// Refuses all but root: others can't even see the images.
pub fn check_root() -> Result<()> {
    if !lifecycle::is_root() {
        bail!("only root can make machines; try sudo");
    }
    Ok(())
}

/// Refuses a host that can't run machines, and says what it lacks.
pub fn check_host() -> Result<()> {
    if !Path::new("/run/systemd/system").is_dir() {
        bail!("this host does not run systemd, which machines need");
    }
    if tool::find("systemd-nspawn").is_none() {
        bail!("systemd-nspawn is not installed; install the package systemd-container");
    }
    Ok(())
}

/// The agent is nspawn-run itself: beside this program, or on PATH.
pub fn agent_program() -> Result<PathBuf> {
    let beside = std::env::current_exe().context("can't tell this program's own path")?.with_file_name("nspawn-run");
    if beside.is_file() {
        return Ok(beside);
    }
    tool::find("nspawn-run").context("nspawn-run is neither beside this program nor on PATH; install it there")
}

/// A line about systemd-machined, where its absence may be why a machine did not start.
pub fn machined_hint() -> &'static str {
    let active = tool::run(&argv(["systemctl", "is-active", "--quiet", "systemd-machined.service"]), LOOK_LIMIT);
    if active.is_ok_and(|outcome| outcome.status.success()) {
        ""
    } else {
        "\n  systemd-machined is not running; see systemctl status systemd-machined"
    }
}
