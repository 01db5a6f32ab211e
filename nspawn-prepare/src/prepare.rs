//! The verb: from an image to a machine that takes commands.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Error, Result, anyhow, bail};
use nspawn_common::exit::{self, JobError};
use nspawn_common::gitlab::{self, Job};
use nspawn_common::image::{self, Image};
use nspawn_common::lifecycle::{self, Lock};
use nspawn_common::name::{self, MachineName};
use nspawn_common::nspawn::{Bind, Nspawn};
use nspawn_common::paths::{AGENT_DIR_IN_MACHINE, AGENT_IN_MACHINE, MachinePaths};
use nspawn_common::state::State;
use nspawn_common::tool::{self, argv};
use nspawn_common::unit::Unit;
use nspawn_common::wire;

use crate::PROGRAM;
use crate::launch;
use crate::options::{self, Options};
use crate::plan::Step;

/// The agent as a service of the machine.
const AGENT_UNIT: &str = include_str!("agent.service");
/// Its name there.
const AGENT_UNIT_NAME: &str = "nspawn-agent.service";
/// How much longer than the boot systemd-run may take, to end a machine that does not boot.
const START_MARGIN: Duration = Duration::from_secs(30);
/// How long the agent of a booted machine may take to answer.
const AGENT_LIMIT: Duration = Duration::from_secs(20);
/// How long looking something up may take.
const LOOK_LIMIT: Duration = Duration::from_secs(10);

/// Reads the options and makes the machine.
pub fn main(argv: &[OsString]) -> Result<()> {
    let job = if gitlab::is_active() { Some(Job::from_env()?) } else { None };
    let image_of = |options: &Options| {
        check_root()?;
        Ok(image::find(&image_reference(options, job.as_ref())?)?.name)
    };
    let Some((options, image)) = options::parse(argv, image_of)? else { return Ok(()) };
    if options.config {
        return print_config(job.as_ref());
    }
    let image = image::find(&image)?;
    let name = machine_name(&options, job.as_ref(), &image)?;
    let machine = Machine { paths: MachinePaths::new(&name), name, image, options };
    let steps = machine.plan()?;
    if machine.options.dry_run {
        return print_steps(&steps);
    }
    let started = Instant::now();
    machine.make(&steps)?;
    if job.is_some() {
        let spent = started.elapsed().as_secs_f32();
        say(&format!("machine {} of image {} is ready after {spent:.1} s", machine.name, machine.image.name));
    }
    // A machine whose name nobody gets is a machine that nobody removes.
    machine.print().or_else(|error| machine.unmake(Lock::acquire(&machine.paths)?, error))
}

// What the administrator fixed, what the job asks for, what the administrator falls back to.
fn image_reference(options: &Options, job: Option<&Job>) -> Result<String> {
    let asked = options.image.clone().or_else(|| job.and_then(|job| job.image.clone()));
    asked.or_else(|| options.default_image.clone()).ok_or_else(|| match job {
        Some(_) => {
            JobError("the job names no image, and this runner has no default; add image: NAME to the job".to_owned())
                .into()
        }
        None => anyhow!("no image is named; see --help"),
    })
}

fn machine_name(options: &Options, job: Option<&Job>, image: &Image) -> Result<MachineName> {
    match (&options.name, job) {
        (Some(name), _) => MachineName::new(name),
        (None, Some(job)) => job.machine_name(),
        (None, None) => {
            let unique = fs::read_to_string("/proc/sys/kernel/random/uuid").context("can't make up a name")?;
            let stem = name::sanitize(&image.name, 40);
            MachineName::new(format!("{}-{}", if stem.is_empty() { "machine" } else { &stem }, &unique[..8]))
        }
    }
}

// Keys: docs.gitlab.com, "Custom executor", config stage.
fn print_config(job: Option<&Job>) -> Result<()> {
    let hostname = job.map(Job::machine_name).transpose()?;
    let config = serde_json::json!({
        "driver": { "name": "nspawn-ci", "version": env!("CARGO_PKG_VERSION") },
        "hostname": hostname.as_ref().map_or("", MachineName::as_str),
        "builds_dir": "/builds",
        "cache_dir": "/cache",
        "builds_dir_is_shared": false,
    });
    print_line(OsStr::new(&config.to_string()))
}

fn print_steps(steps: &[Step]) -> Result<()> {
    steps.iter().try_for_each(|step| print_line(&step.shell()))
}

fn print_line(line: &OsStr) -> Result<()> {
    let whole = [line.as_bytes(), b"\n"].concat();
    std::io::stdout().write_all(&whole).context("can't write to stdout")
}

fn say(line: &str) {
    exit::say(PROGRAM, OsStr::new(line));
}

struct Machine {
    name: MachineName,
    paths: MachinePaths,
    image: Image,
    options: Options,
}

impl Machine {
    /// All that makes the machine, the state first.
    fn plan(&self) -> Result<Vec<Step>> {
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
            Bind::read_only(&agent_program()?, Path::new(AGENT_IN_MACHINE)),
            Bind::read_only(&self.paths.agent_unit(), &agent_unit),
            Bind::writable(&self.paths.agent_dir(), Path::new(AGENT_DIR_IN_MACHINE)),
        ];
        binds.extend(self.options.binds.iter().cloned());
        let nspawn = Nspawn {
            name: &self.name,
            root: self.paths.root_mount(),
            binds,
            boot_words: vec![
                format!("systemd.wants={AGENT_UNIT_NAME}"),
                // A big build in /tmp belongs on the layer, not in memory.
                "systemd.mask=tmp.mount".to_owned(),
                // Nobody can type at a console that is read-only.
                "systemd.mask=console-getty.service".to_owned(),
            ],
        };
        let unit = Unit {
            name: &self.name,
            image: &self.image.name,
            timeout: self.options.timeout,
            properties: &self.options.properties,
        };
        Ok(unit.start_command(&launch::command(&self.name, &self.image.path, nspawn.command())?))
    }

    /// Makes the machine; what a failure has made of it is removed again.
    fn make(&self, steps: &[Step]) -> Result<()> {
        check_host()?;
        image::check_bootable(&self.image)?;
        if lifecycle::is_foreign(&self.paths) {
            bail!("there is a machine {} that these programs did not make; choose another --name", self.name);
        }
        let lock = Lock::acquire(&self.paths)?;
        lifecycle::clear(&self.paths, &lock)?;
        let started = SystemTime::now();
        let Err(error) = self.take(steps) else { return Ok(()) };
        self.unmake(lock, self.with_journal(error, started))
    }

    /// Removes what there is of the machine, because of `error`.
    fn unmake(&self, lock: Lock, error: Error) -> Result<()> {
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
        }
        wire::hello(&self.paths, AGENT_LIMIT).context("the machine booted but takes no commands")
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
        let lines: String = lines.lines().map(|line| format!("{}\n", wire::printable(line.as_bytes()))).collect();
        anyhow!(
            "machine {} of image {} did not start: {error:#}{}{}",
            self.name,
            self.image.name,
            machined_hint(),
            tool::below(&lines)
        )
    }

    fn state(&self) -> State {
        State {
            name: self.name.clone(),
            image: self.image.name.clone(),
            image_path: self.image.path.clone(),
            environment: self.options.environment.clone(),
        }
    }

    fn print(&self) -> Result<()> {
        let line = if self.options.json { self.state().to_json().to_string() } else { self.name.to_string() };
        print_line(OsStr::new(&line))
    }
}

// Others can't even see the images.
fn check_root() -> Result<()> {
    if !lifecycle::is_root() {
        bail!("only root can make machines; try sudo");
    }
    Ok(())
}

fn check_host() -> Result<()> {
    if !Path::new("/run/systemd/system").is_dir() {
        bail!("this host does not run systemd, which machines need");
    }
    if tool::find("systemd-nspawn").is_none() {
        bail!("systemd-nspawn is not installed; install the package systemd-container");
    }
    Ok(())
}

// The agent is nspawn-run itself: beside this program, or on PATH.
fn agent_program() -> Result<PathBuf> {
    let beside = std::env::current_exe().context("can't tell this program's own path")?.with_file_name("nspawn-run");
    if beside.is_file() {
        return Ok(beside);
    }
    tool::find("nspawn-run").context("nspawn-run is neither beside this program nor on PATH; install it there")
}

fn machined_hint() -> &'static str {
    let active = tool::run(&argv(["systemctl", "is-active", "--quiet", "systemd-machined.service"]), LOOK_LIMIT);
    if active.is_ok_and(|outcome| outcome.status.success()) {
        ""
    } else {
        "\n  systemd-machined is not running; see systemctl status systemd-machined"
    }
}
