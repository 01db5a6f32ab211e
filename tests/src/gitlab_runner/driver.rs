//! Process of a driver: its streams, its time limit and its end.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::interventions::Reaction;
use super::remote::Remote;
use super::report::Interruption;

/// Time limit for the end of a driver after SIGKILL.
const FORCE_LIMIT: Duration = Duration::from_secs(10);
/// Time limit for the end of its streams after the end of a driver.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// A stream of a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// An event in the life of a driver.
#[derive(Debug)]
pub enum Event {
    Output(Stream, Vec<u8>),
    Closed,
    Ended(ExitStatus),
    /// The remote end of the job has made a request.
    Requested,
}

/// Time limits of a driver.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Time limit until SIGTERM.
    pub time: Duration,
    /// Grace period between SIGTERM and SIGKILL.
    pub graceful: Duration,
}

/// The result of a driver.
#[derive(Debug, Default)]
pub struct DriverResult {
    /// Exit status of the driver.
    pub status: ExitStatus,
    /// Bytes that the driver wrote to stdout.
    pub stdout: Vec<u8>,
    /// Bytes that the driver wrote to stderr.
    pub stderr: Vec<u8>,
    /// Bytes of both streams, in the order of their arrival.
    pub both: Vec<u8>,
    /// Reason for which SIGTERM was sent to the driver, if it was.
    pub interruption: Option<Interruption>,
    /// Time from SIGTERM to the end of the driver.
    pub reaction: Duration,
    /// True if SIGKILL ended the driver.
    pub killed: bool,
}

/// Runs a driver to its end, as the leader of a process group of its own.
///
/// The stdin of the driver is /dev/null. `watch` is called at the start, at each output, and when
/// `remote` makes a request. Its argument is all output so far, and what it returns is done to the
/// driver.
pub fn supervise(
    command: &mut Command,
    limits: Limits,
    remote: &Remote,
    watch: impl FnMut(&[u8]) -> Reaction,
) -> DriverResult {
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
    let result = driver.watch(watch);
    remote.wake(None);
    result
}

/// Sends what a stream yields as events.
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

/// A phase in the life of a driver, with the time of SIGTERM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Runs,
    Terminating(Instant),
    Killed(Instant),
    HasEnded,
}

/// A driver that runs.
struct Driver {
    description: String,
    group: u32,
    events: Receiver<Event>,
    limits: Limits,
    /// Deadline of the phase.
    deadline: Instant,
    /// Number of streams that are open.
    open: u8,
    phase: Phase,
}

impl Driver {
    fn watch(mut self, mut watch: impl FnMut(&[u8]) -> Reaction) -> DriverResult {
        let mut result = DriverResult::default();
        self.apply(watch(&[]), &mut result);
        while self.open > 0 || self.phase != Phase::HasEnded {
            let left = self.deadline.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left) {
                Ok(Event::Output(stream, bytes)) => {
                    result.both.extend(&bytes);
                    match stream {
                        Stream::Stdout => result.stdout.extend(bytes),
                        Stream::Stderr => result.stderr.extend(bytes),
                    }
                    self.apply(watch(&result.both), &mut result);
                }
                Ok(Event::Requested) => self.apply(watch(&result.both), &mut result),
                Ok(Event::Closed) => self.open -= 1,
                Ok(Event::Ended(status)) => self.record_end(status, &mut result),
                Err(RecvTimeoutError::Timeout) => self.escalate(&mut result),
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("can't wait for {}", self.description)
                }
            }
        }
        result
    }

    fn apply(&mut self, reaction: Reaction, result: &mut DriverResult) {
        match reaction {
            Reaction::Continue => {}
            Reaction::Canceling => self.terminate(Interruption::Canceling, result),
            Reaction::Abort => self.terminate(Interruption::Abort, result),
        }
    }

    fn terminate(&mut self, why: Interruption, result: &mut DriverResult) {
        if self.phase == Phase::Runs {
            result.interruption = Some(why);
            self.signal("TERM");
            self.enter(Phase::Terminating(Instant::now()), self.limits.graceful);
        }
    }

    fn record_end(&mut self, status: ExitStatus, result: &mut DriverResult) {
        if let Phase::Terminating(since) | Phase::Killed(since) = self.phase {
            result.reaction = since.elapsed();
        }
        result.status = status;
        self.enter(Phase::HasEnded, CLOSE_LIMIT);
    }

    /// Takes the next step when the deadline of a phase has passed.
    fn escalate(&mut self, result: &mut DriverResult) {
        match self.phase {
            Phase::Runs => self.terminate(Interruption::TimeOut, result),
            Phase::Terminating(since) => {
                result.killed = true;
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

    // The signal is lost if all processes of the group have just ended, which is not an error.
    fn signal(&self, name: &str) {
        // This uses the shell's built-in, because kill of procps 4.0.7 does not accept a group
        // after `--`.
        let line = format!("kill -s {name} -- -{}", self.group);
        let _ = Command::new("sh")
            .args(["-c", &line])
            .stderr(Stdio::null())
            .status();
    }
}
