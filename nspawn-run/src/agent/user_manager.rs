//! The systemd of a user, which systemd runs as `user@UID.service` (user@.service(5)).

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nspawn_common::command;
use nspawn_common::command::argv;
use nspawn_common::machine::passwd::User;

use crate::agent::login;

/// Time limit for the start, which takes about a tenth of a second.
const LIMIT: Duration = Duration::from_secs(60);

/// Starts the user's systemd, and waits until it is ready. It may run already.
pub fn start(user: &User) -> Result<()> {
    let failure = || format!("can't start the systemd of user {:?}", user.name);
    if fs::exists(Path::new(&login::runtime_path(user)).join("systemd/private")).unwrap_or(false) {
        return Ok(());
    }
    if !fs::exists("/run/systemd/system").unwrap_or(false) {
        bail!(
            "{}: no systemd runs in the machine; use --init=systemd",
            failure()
        );
    }
    let unit = format!("user@{}.service", user.uid);
    command::run_checked(&argv(["systemctl", "start", &unit]), LIMIT)
        .map(drop)
        .with_context(failure)
}
