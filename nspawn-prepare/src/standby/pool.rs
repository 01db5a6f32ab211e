//! Machines that are started ahead of those who will ask for them. Each is taken once, by a prepare of the same
//! specification, and whoever takes one has the pool filled again.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nspawn_common::image::lookup::ImageLock;
use nspawn_common::lifecycle::list;
use nspawn_common::lifecycle::lock;
use nspawn_common::lifecycle::lock::{Lock, Resource};
use nspawn_common::lifecycle::remove;
use nspawn_common::lifecycle::ssh;
use nspawn_common::machine::name;
use nspawn_common::machine::paths::{MachinePaths, POOL_ROOT};
use nspawn_common::machine::processes;
use nspawn_common::machine::state::State;
use nspawn_common::sys::fs::remove_file_if_present;
use nspawn_common::systemd::machined::Registration;
use nspawn_common::systemd::nspawn;
use nspawn_common::{command, report};
use serde_json::{Value, json};

use crate::PROGRAM;
use crate::create::spec::Machine;
use crate::create::step::Step;
use crate::standby::fingerprint;
use nspawn_common::agent::client;
use nspawn_common::machine::namespaces;
use nspawn_common::sys::namespace;

/// How long the agent of a machine that stands by may take to answer.
const AGENT_LIMIT: Duration = Duration::from_secs(2);
/// How long others may take to count the machines that stand by.
const COUNT_LIMIT: Duration = Duration::from_secs(60);
/// How long systemd may take to begin to fill a pool.
const REFILL_LIMIT: Duration = Duration::from_secs(10);

/// The argument that asks for a pool to be filled again: `--refill POOL`.
pub const OPTION: &str = "--refill";

/// What one call of `nspawn-prepare --standby` has asked for.
pub struct Pool {
    id: String,
    record: Value,
}

impl Pool {
    /// Writes down what was asked for, so that it can be made again: `argv`, for these `images`. The same with another
    /// `count` is the same pool; with none, it is forgotten. `given` are variables that its machines have.
    pub fn record(
        argv: &[OsString],
        images: &[String],
        count: usize,
        given: &[OsString],
    ) -> Result<Self> {
        let variables = env::vars_os().filter(|(name, _)| name.as_bytes().starts_with(b"NSPAWN_"));
        let variables = variables
            .map(|(name, value)| nspawn::assign(name.to_str().unwrap_or_default(), &value));
        let variables = variables.chain(given.iter().cloned()).map(text);
        let directory = env::current_dir().context("can't tell the current directory")?;
        let record = json!({
            "images": images,
            "directory": text(directory)?,
            "environment": variables.collect::<Result<Vec<_>>>()?,
            "arguments": without_count(argv).map(text).collect::<Result<Vec<_>>>()?,
            "count": count,
        });
        let _lock = lock::host(Resource::Pools, COUNT_LIMIT)?;
        let is_same = |known: &Value| {
            ["images", "arguments"]
                .iter()
                .all(|key| known[key] == record[key])
        };
        let known = pools()?.into_iter().find(|pool| is_same(&pool.record));
        if known.is_none() && count == 0 {
            report::print_diagnostic(
                PROGRAM,
                OsStr::new("nothing stands by that was asked for with these options and images"),
            );
        }
        let id = known.map_or_else(name::random_uuid, |pool| Ok(pool.id))?;
        let pool = Self { id, record };
        match count {
            0 => remove_file_if_present(&pool.path())?,
            _ => Step::File(pool.path(), pool.record.to_string().into_bytes()).take()?,
        }
        Ok(pool)
    }

    /// The pool that was recorded under this name; `None` if it is forgotten.
    pub fn find(id: &OsStr) -> Result<Option<Self>> {
        Ok(pools()?.into_iter().find(|pool| *pool.id == *id))
    }

    fn path(&self) -> PathBuf {
        Path::new(POOL_ROOT).join(&self.id)
    }

    // Somebody may have asked for more or less meanwhile.
    fn count(&self) -> Result<usize> {
        let now = Self::find(self.id.as_ref())?;
        Ok(now
            .and_then(|pool| usize::try_from(pool.record["count"].as_u64()?).ok())
            .unwrap_or(0))
    }

    fn strings(&self, key: &str) -> Vec<&str> {
        self.record[key]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect()
    }

    /// The names of its images.
    pub fn images(&self) -> Vec<String> {
        self.strings("images")
            .into_iter()
            .map(str::to_owned)
            .collect()
    }

    /// The options of its machines.
    pub fn arguments(&self) -> Vec<OsString> {
        self.strings("arguments")
            .into_iter()
            .map(OsString::from)
            .collect()
    }

    /// Makes machines of `image` until as many stand by as were asked for, each made by `next` from a part of a name,
    /// and removes what is too much or out of date.
    ///
    /// # Errors
    /// They end, or are out of date, as fast as they are made.
    pub fn fill(
        &self,
        image: &str,
        next: impl Fn(&str) -> Result<(Machine, ImageLock)>,
    ) -> Result<()> {
        let mut most = None;
        loop {
            let queue = lock::host(Resource::Pools, COUNT_LIMIT)?;
            let (mut machine, _image_lock) = next(&name::random_uuid()?[..8])?;
            let mark = format!("{}/{image}", self.id);
            let mut ours = Ours::count(&mark, &fingerprint::of(&machine)?)?;
            let count = self.count()?;
            let missing = count.saturating_sub(ours.good.len());
            ours.bad
                .extend(ours.good.drain(count.min(ours.good.len())..));
            for error in ours.bad.iter().filter_map(|paths| remove(paths).err()) {
                report::print_diagnostic(PROGRAM, OsStr::new(&format!("{error:#}")));
            }
            if missing == 0 {
                return Ok(());
            }
            let left = most.get_or_insert(count);
            *left = left.checked_sub(1).with_context(|| {
                format!("machines of {image} that stand by end, or are out of date, as fast as they are made")
            })?;
            machine.pool = Some(mark);
            let steps = machine.plan()?;
            machine.make(&steps, Some(queue), || Ok(()))?;
        }
    }

    /// Makes this process see what the one saw that asked for the pool.
    pub fn enter(&self) -> Result<()> {
        for variable in self.strings("environment") {
            let Some((name, value)) = variable
                .split_once('=')
                .filter(|(name, _)| env::var_os(name).is_none())
            else {
                continue;
            };
            // SAFETY: this process has a single thread.
            unsafe { env::set_var(name, value) };
        }
        let directory = self.record["directory"].as_str().unwrap_or("/");
        env::set_current_dir(directory).with_context(|| format!("can't enter {directory}"))
    }

    fn refill_command(&self) -> Result<Vec<OsString>> {
        let mut command: Vec<OsString> = ["systemd-run", "--quiet", "--collect"]
            .map(OsString::from)
            .into();
        // Not while the machine that was taken begins its work.
        command
            .extend(["--on-active=1s", "--timer-property=AccuracySec=100ms"].map(OsString::from));
        command.push("--description=Machines that stand by".into());
        command.extend([
            "--".into(),
            command::current_program()?.into(),
            OPTION.into(),
            self.id.clone().into(),
        ]);
        Ok(command)
    }
}

/// The machines of one pool and one image.
#[derive(Default)]
struct Ours {
    /// Those that may be taken, or will be.
    good: Vec<MachinePaths>,
    /// Those that nobody will take.
    bad: Vec<MachinePaths>,
}

impl Ours {
    fn count(mark: &str, wanted: &[u8]) -> Result<Self> {
        let mut ours = Self::default();
        for paths in all()? {
            if !fs::read(paths.standby_mark()).is_ok_and(|there| there == mark.as_bytes()) {
                continue;
            }
            let is_wanted =
                || fs::read(paths.fingerprint_file()).is_ok_and(|there| there == wanted);
            // One that is being taken has no mark any more.
            if Lock::is_held(&paths) || (is_wanted() && processes::is_running(&paths)) {
                ours.good.push(paths);
            } else {
                ours.bad.push(paths);
            }
        }
        Ok(ours)
    }
}

fn remove(paths: &MachinePaths) -> Result<()> {
    match Lock::try_acquire_of_existing(paths)? {
        // Somebody may have taken it meanwhile.
        Some(lock) if paths.standby_mark().exists() => remove::remove_machine(paths.name(), lock),
        _ => Ok(()),
    }
}

fn all() -> Result<Vec<MachinePaths>> {
    let names = list::all()?
        .into_iter()
        .filter(|name| name.is_for_standby());
    Ok(names.map(|name| MachinePaths::new(&name)).collect())
}

// Whether anything is kept ready on this host.
fn is_in_use() -> bool {
    Path::new(POOL_ROOT).exists()
}

/// Makes one that stands by the `machine`, if one of its specification does; `taken` is the machine's lock then.
pub fn take(machine: &Machine, taken: &mut Option<Lock>) -> Result<()> {
    if machine.pool.is_some() || !is_in_use() || fingerprint::check(machine).is_err() {
        return Ok(());
    }
    let wanted = fingerprint::of(machine)?;
    let is_wanted = |paths: &MachinePaths| {
        fs::read(paths.fingerprint_file()).is_ok_and(|there| there == wanted)
    };
    let all = all()?;
    // First without a wait. Who holds a lock need not mean to take the machine.
    let passes = [false, true]
        .iter()
        .flat_map(|waits| all.iter().map(move |from| (from, *waits)));
    for (from, waits) in passes {
        if !is_wanted(from) || (!waits && Lock::is_held(from)) {
            continue;
        }
        let Some(lock) = Lock::try_acquire_of_existing(from)? else {
            continue;
        };
        if !is_wanted(from) {
            continue;
        }
        let Ok((state, registration)) = look(from) else {
            // Whoever fills the pool replaces it.
            remove_file_if_present(&from.fingerprint_file())?;
            continue;
        };
        *taken = Some(lock);
        return hand_over(from, machine, state.layer_size, &registration)
            .inspect_err(|_| abandon(from, taken));
    }
    Ok(())
}

// Whether it can be taken: its state, and its registration.
fn look(from: &MachinePaths) -> Result<(State, Registration)> {
    client::ping(from, AGENT_LIMIT)?;
    Ok((State::read(from.name())?, Registration::unregister(from)?))
}

// What has not been exchanged is nobody's any more.
fn abandon(from: &MachinePaths, taken: &mut Option<Lock>) {
    if from.origin_link().is_symlink() {
        let _ = taken
            .take()
            .map(|lock| remove::remove_machine(from.name(), lock));
    }
}

// Whoever is killed on the way leaves what belongs to nobody, under one name or the other.
fn hand_over(
    from: &MachinePaths,
    machine: &Machine,
    layer_size: Option<u64>,
    registration: &Registration,
) -> Result<()> {
    let to = &machine.paths;
    let failure = || format!("can't take over machine {}", from.name());
    symlink(from.name().as_str(), from.origin_link()).with_context(failure)?;
    fs::remove_file(from.fingerprint_file()).with_context(failure)?;
    fs::remove_file(from.standby_mark()).with_context(failure)?;
    if from.layer().exists() {
        fs::rename(from.layer(), to.layer()).with_context(failure)?;
    }
    exchange(&from.state_dir(), &to.state_dir()).with_context(failure)?;
    // What is there now is the lock of a machine that was none.
    remove::remove_state_directory(from)?;
    let state = State {
        layer_size,
        ..machine.state()?
    };
    Step::File(to.state_file(), state.to_json().to_string().into_bytes()).take()?;
    set_host_name(to, registration.leader).with_context(failure)?;
    registration.register(to)?;
    ssh::publish(to)
}

fn exchange(one: &Path, other: &Path) -> Result<()> {
    // Who looks for a free range of users must not miss a machine's.
    let _lock = lock::host(Resource::UidRanges, lock::UID_RANGES_LIMIT)?;
    Ok(renameat2(
        AT_FDCWD,
        one,
        AT_FDCWD,
        other,
        RenameFlags::RENAME_EXCHANGE,
    )?)
}

fn set_host_name(paths: &MachinePaths, leader: u32) -> Result<()> {
    let [namespace] = namespaces::open(paths, leader, ["ns/uts"])?;
    namespace::set_host_name(&namespace, paths.name().as_str())
}

/// Has the pools filled that have machines of this image.
pub fn refill(image: &str) -> Result<()> {
    if !is_in_use() {
        return Ok(());
    }
    for pool in pools()?
        .iter()
        .filter(|pool| pool.images().iter().any(|name| name == image))
    {
        command::run_checked(&pool.refill_command()?, REFILL_LIMIT)?;
    }
    Ok(())
}

// `--standby=N` or `--standby N`.
fn without_count(argv: &[OsString]) -> impl Iterator<Item = &OsString> {
    let mut is_count = false;
    argv.iter().filter(move |word| {
        let is_option = *word == "--standby";
        let is_left_out = is_option || is_count || word.as_bytes().starts_with(b"--standby=");
        is_count = is_option;
        !is_left_out
    })
}

fn pools() -> Result<Vec<Pool>> {
    let mut pools = Vec::new();
    for entry in fs::read_dir(POOL_ROOT).with_context(|| format!("can't read {POOL_ROOT}"))? {
        let path: PathBuf = entry?.path();
        let Some(id) = path.file_name().and_then(OsStr::to_str) else {
            continue;
        };
        // One that is forgotten meanwhile, or half written, is none.
        let record = fs::read(&path)
            .ok()
            .and_then(|pool| serde_json::from_slice(&pool).ok());
        pools.extend(record.map(|record| Pool {
            id: id.to_owned(),
            record,
        }));
    }
    Ok(pools)
}

fn text(word: impl AsRef<OsStr>) -> Result<String> {
    let word = word.as_ref();
    word.to_str()
        .map(str::to_owned)
        .ok_or_else(|| anyhow!("{word:?} is not UTF-8, which systemd needs it to be"))
}
