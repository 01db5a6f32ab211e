//! Fingerprint of a machine's configuration: machines with equal fingerprints are interchangeable.
//!
//! The fingerprint contains neither the name nor what can still be changed while the machine runs.

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
use nspawn_common::systemd::nspawn::Bind;
use nspawn_common::{command, shell};

use crate::create::spec::MachineSpec;
use crate::create::start_commands::StartCommands;
use crate::options::MachineOptions;
use crate::preflight;

/// Properties whose time begins with the start of the unit (systemd.service(5)), which is too early
/// for a standby machine.
const TIMED_PROPERTIES: [&[u8]; 2] = [b"RuntimeMaxSec=", b"RuntimeRandomizedExtraSec="];

/// Files of the host from which a machine gets its resolvers at its start.
const COPIED_FILES: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// Checks that a machine with this configuration can be started ahead of time.
pub fn check(spec: &MachineSpec) -> Result<()> {
    let options = &spec.options;
    if options.init == Init::None {
        bail!(
            "can't keep machines with --init=none on standby: nothing runs in them between commands"
        );
    }
    if options.owner.is_some() {
        bail!("can't keep machines with --owner on standby: they would exist before their owner");
    }
    if spec.paths.slice_of().is_some() {
        bail!(
            "can't keep machines of jobs with services on standby: a machine that runs can't join the slice of a job"
        );
    }
    let is_timed = |property: &&OsString| {
        TIMED_PROPERTIES
            .iter()
            .any(|name| property.as_bytes().starts_with(name))
    };
    match options.properties.iter().find(is_timed) {
        Some(property) => bail!(
            "can't use {} on standby: its time would pass before a caller takes over the machine",
            property.to_string_lossy()
        ),
        None => Ok(()),
    }
}

/// Returns the fingerprint, as text.
pub fn compute(spec: &MachineSpec) -> Result<Vec<u8>> {
    let nominal = nominal(spec)?;
    // The command lines contain almost everything that systemd and systemd-nspawn know about the
    // machine.
    let commands = StartCommands::new(&nominal)?.into_list();
    let mut lines: Vec<OsString> = commands.iter().map(shell::join).collect();
    let options = &nominal.options;
    let mut add = |value: &dyn Debug| lines.push(format!("{value:?}").into());
    add(&(
        &options.private_users,
        &options.network,
        options.init,
        options.layer,
        options.layer_size,
        options.nesting,
        &options.allowed_families,
    ));
    for image in &spec.image.layers {
        add(&(image, identity(image), change_time(image)));
    }
    for program in [command::current_program()?, preflight::agent_program()?] {
        add(&(identity(&program), change_time(&program)));
    }
    for source in options.binds.iter().filter_map(Bind::source) {
        add(&(&source, identity(&source)));
    }
    match &options.network {
        Network::Namespace(path) => add(&identity(Path::new(path))),
        Network::Bridge(name) => add(&fs::read(format!("/sys/class/net/{name}/ifindex")).ok()),
        _ => {}
    }
    if options.network != Network::None {
        add(&COPIED_FILES.map(|path| fs::read(path).ok()));
    }
    Ok(lines.join("\n".as_ref()).into_encoded_bytes())
}

// The same machine with the same name, time limit and lifetime for all.
fn nominal(spec: &MachineSpec) -> Result<MachineSpec> {
    let name = MachineName::for_standby("nominal")?;
    Ok(MachineSpec {
        paths: MachinePaths::named(&name),
        name,
        options: MachineOptions {
            timeout: Duration::from_secs(1),
            ..spec.options.clone()
        },
        lifetime: None,
        ..spec.clone()
    })
}

// A file that was replaced has another inode.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

// A file that was changed in place has another change time.
fn change_time(path: &Path) -> Option<(i64, i64)> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.ctime(), metadata.ctime_nsec()))
}
