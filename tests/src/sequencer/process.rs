//! A driver's process: its streams, its time limit and its end.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::job::Then;
use super::remote::Remote;
use super::report::Interruption;

/// How long a driver may take to end after SIGKILL.
const FORCE_LIMIT: Duration = Duration::from_secs(10);
/// How long its streams may take to close after its end.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// Which of a driver's streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

#[derive(Debug)]
pub enum Event {
    Output(Stream, Vec<u8>),
    Closed,
    Ended(ExitStatus),
    /// Somebody outside wants something of it.
    Asked,
}

/// How long a driver may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// By itself.
    pub time: Duration,
    /// After SIGTERM.
    pub graceful: Duration,
}

/// What a driver did.
#[derive(Debug, Default)]
pub struct Ended {
    /// How it ended.
    pub status: ExitStatus,
    /// Its stdout.
    pub stdout: Vec<u8>,
    /// Its stderr.
    pub stderr: Vec<u8>,
    /// Its stdout and stderr, as they came.
    pub both: Vec<u8>,
    /// Why it was asked to end, if it was.
    pub interruption: Option<Interruption>,
    /// How long it took from then to its end.
    pub reaction: Duration,
    /// Whether it took SIGKILL.
    pub killed: bool,
}

/// Runs `command` to its end as the leader of a process group of its own, with stdin from
/// /dev/null. `watch` sees what it has written so far, at first nothing, and decides on its fate; it is called too when
/// `remote` wants something.
pub fn supervise(
    command: &mut Command,
    limits: Limits,
    remote: &Remote,
    watch: impl FnMut(&[u8]) -> Then,
) -> Ended {
    let description = format!(
        "{:?} {:?}",
        command.get_program(),
        command.get_args().collect::<Vec<_>>()
    );
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap_or_else(|error| panic!("{description}: {error}"));
    let (sender, events) = channel();
    collect(Stream::Stdout, child.stdout.take(), sender.clone());
    collect(Stream::Stderr, child.stderr.take(), sender.clone());
    remote.wake(Some(sender.clone()));
    let group = child.id();
    thread::spawn(move || child.wait().map(|status| sender.send(Event::Ended(status))));
    let deadline = Instant::now() + limits.time;
    let driver = Driver {
        description,
        group,
        events,
        limits,
        deadline,
        open: 2,
        phase: Phase::Runs,
    };
    let ended = driver.watch(watch);
    remote.wake(None);
    ended
}

fn collect(stream: Stream, source: Option<impl Read + Send + 'static>, sender: Sender<Event>) {
    thread::spawn(move || {
        let mut buffer = [0; 64 << 10];
        let mut source = source?;
        while let Ok(count @ 1..) = source.read(&mut buffer) {
            sender
                .send(Event::Output(stream, buffer[..count].to_vec()))
                .ok()?;
        }
        sender.send(Event::Closed).ok()
    });
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Runs,
    Asked(Instant),
    Killed(Instant),
    HasEnded,
}

struct Driver {
    description: String,
    group: u32,
    events: Receiver<Event>,
    limits: Limits,
    /// Of the phase.
    deadline: Instant,
    /// How many of its streams are.
    open: u8,
    phase: Phase,
}

impl Driver {
    fn watch(mut self, mut watch: impl FnMut(&[u8]) -> Then) -> Ended {
        let mut ended = Ended::default();
        self.obey(watch(&[]), &mut ended);
        while self.open > 0 || self.phase != Phase::HasEnded {
            match self
                .events
                .recv_timeout(self.deadline.saturating_duration_since(Instant::now()))
            {
                Ok(Event::Output(stream, bytes)) => {
                    ended.both.extend(&bytes);
                    if stream == Stream::Stdout {
                        &mut ended.stdout
                    } else {
                        &mut ended.stderr
                    }
                    .extend(bytes);
                    self.obey(watch(&ended.both), &mut ended);
                }
                Ok(Event::Asked) => self.obey(watch(&ended.both), &mut ended),
                Ok(Event::Closed) => self.open -= 1,
                Ok(Event::Ended(status)) => self.note_end(status, &mut ended),
                Err(RecvTimeoutError::Timeout) => self.escalate(&mut ended),
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("{} can't be waited for", self.description)
                }
            }
        }
        ended
    }

    fn obey(&mut self, then: Then, ended: &mut Ended) {
        match then {
            Then::Continue => {}
            Then::Canceling => self.ask(Interruption::Canceling, ended),
            Then::Abort => self.ask(Interruption::Abort, ended),
        }
    }

    fn ask(&mut self, why: Interruption, ended: &mut Ended) {
        if self.phase == Phase::Runs {
            ended.interruption = Some(why);
            self.signal("TERM");
            self.enter(Phase::Asked(Instant::now()), self.limits.graceful);
        }
    }

    fn note_end(&mut self, status: ExitStatus, ended: &mut Ended) {
        if let Phase::Asked(since) | Phase::Killed(since) = self.phase {
            ended.reaction = since.elapsed();
        }
        ended.status = status;
        self.enter(Phase::HasEnded, CLOSE_LIMIT);
    }

    fn escalate(&mut self, ended: &mut Ended) {
        match self.phase {
            Phase::Runs => self.ask(Interruption::TimeOut, ended),
            Phase::Asked(since) => {
                ended.killed = true;
                self.signal("KILL");
                self.enter(Phase::Killed(since), FORCE_LIMIT);
            }
            Phase::Killed(_) => panic!("{} survives SIGKILL", self.description),
            Phase::HasEnded => panic!(
                "{} left something behind that holds the job's log open",
                self.description
            ),
        }
    }

    fn enter(&mut self, phase: Phase, limit: Duration) {
        self.phase = phase;
        self.deadline = Instant::now() + limit;
    }

    // Fails where all of the group has just ended.
    fn signal(&self, name: &str) {
        // The shell's own: that of procps 4.0.7 knows no groups behind `--`.
        let line = format!("kill -s {name} -- -{}", self.group);
        let _ = Command::new("sh")
            .args(["-c", &line])
            .stderr(Stdio::null())
            .status();
    }
}
