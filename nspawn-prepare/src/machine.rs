//! A machine: the steps that make it, and what becomes of a failure.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Error, Result, anyhow, bail};
use nspawn_common::exit;
use nspawn_common::image::{self, Image};
use nspawn_common::interrupt::{self, Interrupted};
use nspawn_common::lifecycle::{self, Lock};
use nspawn_common::name::MachineName;
use nspawn_common::nspawn::{Bind, Nspawn};
use nspawn_common::paths::{AGENT_DIR_IN_MACHINE, AGENT_IN_MACHINE, MachinePaths};
use nspawn_common::state::State;
use nspawn_common::tool::{self, argv};
use nspawn_common::unit::Unit;
use nspawn_common::wire;

use crate::PROGRAM;
use crate::host::{self, LOOK_LIMIT};
use crate::launch;
use crate::options::Options;
use crate::plan::Step;

/// The agent as a service of the machine.
const AGENT_UNIT: &str = include_str!("agent.service");
/// Its name there.
const AGENT_UNIT_NAME: &str = "nspawn-agent.service";
/// How much longer than the boot systemd-run may take, to end a machine that does not boot.
const START_MARGIN: Duration = Duration::from_secs(30);
/// How long the agent of a booted machine may take to answer.
const AGENT_LIMIT: Duration = Duration::from_secs(20);

/// Units that a machine of ours has no use for.
const MASKED: [&str; 4] = [
    "tmp.mount",                     // a big build in /tmp belongs on the layer, not in memory
    "console-getty.service",         // nobody can type at a console that is read-only
    "systemd-remount-fs.service",    // the image's fstab tells of disks that the machine does not have
    "systemd-journal-flush.service", // a journal that goes with the machine need not be on disk
];

fn boot_words() -> Vec<String> {
    let masks = MASKED.map(|unit| format!("systemd.mask={unit}"));
    [format!("systemd.wants={AGENT_UNIT_NAME}")].into_iter().chain(masks).collect()
}

/// A machine to be made.
pub struct Machine {
    pub name: MachineName,
    pub paths: MachinePaths,
    pub image: Image,
    pub options: Options,
}

impl Machine {
    /// All that makes the machine, the state first.
    pub fn plan(&self) -> Result<Vec<Step>> {
        let paths = &self.paths;
        let root_mode = fs::metadata(&self.image.path).map_or(0o755, |image| image.permissions().mode() & 0o7777);
        Ok(vec![
            Step::Directory(paths.state_dir(), 0o700),
            Step::File(paths.state_file(), self.state().to_json().to_string().into_bytes()),
            Step::File(paths.agent_unit(), AGENT_UNIT.into()),
            Step::Directory(paths.image_mount(), 0o700),
            Step::Directory(paths.root_mount(), 0o700),
            Step::Directory(paths.layer(), 0o700),
            Step::Directory(paths.agent_dir(), 0o700),
            Step::Directory(paths.layer().join("upper"), root_mode),
            Step::Directory(paths.layer().join("work"), 0o700),
            Step::Run(self.start_command()?, self.options.timeout + START_MARGIN),
        ])
    }

    fn start_command(&self) -> Result<Vec<OsString>> {
        let agent_unit = Path::new("/run/systemd/system").join(AGENT_UNIT_NAME);
        let mut binds = vec![
            Bind::read_only(&host::agent_program()?, Path::new(AGENT_IN_MACHINE)),
            Bind::read_only(&self.paths.agent_unit(), &agent_unit),
            Bind::writable(&self.paths.agent_dir(), Path::new(AGENT_DIR_IN_MACHINE)),
        ];
        binds.extend(self.options.binds.iter().cloned());
        let nspawn = Nspawn { name: &self.name, root: self.paths.root_mount(), binds, boot_words: boot_words() };
        let unit = Unit {
            name: &self.name,
            image: &self.image.name,
            timeout: self.options.timeout,
            properties: &self.options.properties,
        };
        Ok(unit.start_command(&launch::command(&self.name, &self.image.path, nspawn.command())?))
    }

    /// Makes the machine; what a failure has made of it is removed again.
    pub fn make(&self, steps: &[Step]) -> Result<()> {
        host::check_host()?;
        image::check_bootable(&self.image)?;
        if lifecycle::is_foreign(&self.paths) {
            bail!("there is a machine {} that these programs did not make; choose another --name", self.name);
        }
        let lock = Lock::acquire(&self.paths)?;
        lifecycle::clear(&self.paths, &lock)?;
        let started = SystemTime::now();
        let Err(error) = self.take(steps) else { return Ok(()) };
        let error = if error.is::<Interrupted>() { error } else { self.with_journal(error, started) };
        self.unmake(lock, error)
    }

    /// Removes what there is of the machine, because of `error`.
    pub fn unmake(&self, lock: Lock, error: Error) -> Result<()> {
        match lifecycle::remove(&self.name, lock) {
            Ok(()) => Err(error),
            Err(second) => {
                Err(error.context(format!("machine {} can't be removed again ({second:#}), after this", self.name)))
            }
        }
    }

    fn take(&self, steps: &[Step]) -> Result<()> {
        for step in steps {
            if self.options.verbose {
                exit::say(PROGRAM, &step.shell());
            }
            step.take()?;
            interrupt::check()?;
        }
        wire::hello(&self.paths, AGENT_LIMIT).context("the machine booted but takes no commands")?;
        interrupt::check()
    }

    // What the machine and systemd-nspawn printed, below the line that says what failed.
    fn with_journal(&self, error: Error, since: SystemTime) -> Error {
        let since = since.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let (unit, since) = (format!("--unit={}", self.paths.unit()), format!("--since=@{since}"));
        let command = argv(["journalctl", "--quiet", "--no-pager", "--output=cat", "--lines=20", &unit, &since]);
        // The journal may not have the last words yet.
        let lines =
            tool::run(&argv(["journalctl", "--sync"]), LOOK_LIMIT).and_then(|_| tool::run(&command, LOOK_LIMIT));
        let lines = lines.map(|outcome| outcome.stdout).unwrap_or_default();
        let lines: Vec<_> = lines.lines().map(|line| wire::printable(line.as_bytes())).collect();
        anyhow!(
            "machine {} of image {} did not start: {error:#}{}{}",
            self.name,
            self.image.name,
            host::machined_hint(),
            tool::below(&lines.join("\n"))
        )
    }

    /// What is written down about it.
    pub fn state(&self) -> State {
        State {
            name: self.name.clone(),
            image: self.image.name.clone(),
            image_path: self.image.path.clone(),
            environment: self.options.environment.clone(),
        }
    }
}
