//! All that a machine is made of but its name, and but what can still be changed when it runs: two machines with the
//! same specification are alike.

use std::ffi::OsString;
use std::fmt::Debug;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use nspawn_common::config::init::Init;
use nspawn_common::config::network::Network;
use nspawn_common::machine::name::MachineName;
use nspawn_common::machine::paths::MachinePaths;
use nspawn_common::{command, shell};

use crate::create::spec::Machine;
use crate::options::Options;
use crate::preflight;

/// Properties that count from the start of a unit (systemd.service(5)): they can't be had for a machine that was
/// started before it was asked for.
const FROM_THE_START: [&[u8]; 2] = [b"RuntimeMaxSec=", b"RuntimeRandomizedExtraSec="];

/// Files of the host that systemd-nspawn shows a machine a copy of.
const COPIED: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// Refuses a machine that can't stand by, and says why.
pub fn check(machine: &Machine) -> Result<()> {
    if machine.options.init == Init::None {
        bail!("with --init=none nothing runs between commands, so there is nothing to start ahead");
    }
    if machine.options.owner.is_some() {
        bail!("a machine that goes with a process can't be made ahead");
    }
    if machine.role.is_some() && machine.options.init == Init::Systemd {
        bail!("the services of its systemd are to be given a job's variables");
    }
    let is_from_the_start = |property: &OsString| {
        FROM_THE_START
            .iter()
            .any(|name| property.as_bytes().starts_with(name))
    };
    match machine
        .options
        .properties
        .iter()
        .find(|property| is_from_the_start(property))
    {
        Some(property) => bail!(
            "{} would count while the machine stands by",
            property.to_string_lossy()
        ),
        None => Ok(()),
    }
}

/// The specification, as text.
pub fn of(machine: &Machine) -> Result<Vec<u8>> {
    let name = MachineName::for_standby("nominal")?;
    // The commands of a machine of that name: they say all that systemd and systemd-nspawn are told.
    let options = Options {
        timeout: Duration::from_secs(1),
        ..machine.options.clone()
    };
    let paths = MachinePaths::new(&name);
    let nominal = Machine {
        name,
        paths,
        options,
        lifetime: None,
        ..machine.clone()
    };
    let mut lines: Vec<OsString> = nominal.start_commands()?.iter().map(shell::join).collect();
    let options = &nominal.options;
    let mut say = |what: &dyn Debug| lines.push(format!("{what:?}").into());
    say(&(
        &options.private_users,
        &options.network,
        options.init,
        options.layer,
        options.layer_size,
        options.nesting,
    ));
    say(&(
        &machine.image.path,
        identity(&machine.image.path),
        change(&machine.image.path),
    ));
    for program in [command::current_program()?, preflight::agent_program()?] {
        say(&(identity(&program), change(&program)));
    }
    for source in options
        .binds
        .iter()
        .filter_map(nspawn_common::systemd::nspawn::Bind::source)
    {
        say(&(&source, identity(&source)));
    }
    match &options.network {
        Network::Namespace(path) => say(&identity(Path::new(path))),
        Network::Bridge(name) => say(&fs::read(format!("/sys/class/net/{name}/ifindex")).ok()),
        _ => {}
    }
    say(&fs::canonicalize("/etc/localtime").ok());
    if options.network != Network::None {
        say(&COPIED.map(|path| fs::read(path).ok()));
    }
    Ok(lines.join("\n".as_ref()).into_encoded_bytes())
}

// Another file or directory in its place is another one.
fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path)
        .ok()
        .map(|there| (there.dev(), there.ino()))
}

// And so is one that was changed, as far as it shows.
fn change(path: &Path) -> Option<(i64, i64)> {
    fs::metadata(path)
        .ok()
        .map(|there| (there.ctime(), there.ctime_nsec()))
}
