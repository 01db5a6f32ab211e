//! `run-single` (commands/single.go): jobs from the server to their end, one after the other.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal};
use serde_json::{Value, json};

use super::flags::Flags;
use super::server::Server;
use super::trace::{self, Trace};
use crate::sequencer::{Job, Outcome, Programs, Remote, Runner, Then};

/// How long it waits where there is no job.
const PAUSE: Duration = Duration::from_millis(500);
/// How long it waits before it tries a machine again.
const BEFORE_RETRY: Duration = Duration::from_secs(3);
/// How large a log may be, in KiB, unless an option says so.
const OUTPUT_LIMIT: usize = 4096;

const OPTIONS: [&str; 20] = [
    "url",
    "token",
    "name",
    "executor",
    "shell",
    "builds-dir",
    "cache-dir",
    "max-builds",
    "wait-timeout",
    "output-limit",
    "custom-config-exec",
    "custom-config-args",
    "custom-prepare-exec",
    "custom-prepare-args",
    "custom-run-exec",
    "custom-run-args",
    "custom-cleanup-exec",
    "custom-cleanup-args",
    "custom-graceful-kill-timeout",
    "custom-force-kill-timeout",
];

/// Who asked it to end, if somebody did.
#[derive(Debug, Default)]
struct Ending {
    /// No more jobs.
    is_asked: AtomicBool,
    /// Not even the one that runs.
    is_abort: AtomicBool,
    running: Mutex<Option<Arc<Remote>>>,
}

/// The command.
pub fn run(words: &[String]) -> Result<()> {
    let flags = Flags::parse(words, &OPTIONS, &["verbose"])?;
    if flags.get("executor")? != "custom" {
        bail!("the stand-in has the custom executor alone");
    }
    let ending = Arc::<Ending>::default();
    watch_signals(&ending)?;
    let (server, runner) = (
        Server::new(&flags.get("url")?, &flags.get("token")?)?,
        runner(&flags)?,
    );
    let (mut left, patience) = (
        flags.value("max-builds", u32::MAX)?,
        flags.value("wait-timeout", u64::MAX)?,
    );
    let limit = flags.value("output-limit", OUTPUT_LIMIT)? << 10;
    let mut last = Instant::now();
    while left > 0
        && last.elapsed() < Duration::from_secs(patience)
        && !ending.is_asked.load(Ordering::SeqCst)
    {
        match next(&server)? {
            None => thread::sleep(PAUSE),
            Some(job) => {
                run_job(&flags.get("url")?, &runner, job, limit, &ending)?;
                (left, last) = (left - 1, Instant::now());
            }
        }
    }
    Ok(())
}

fn runner(flags: &Flags) -> Result<Runner> {
    let programs = Programs {
        config: flags.get("custom-config-exec")?,
        prepare: flags.get("custom-prepare-exec")?,
        run: flags.get("custom-run-exec")?,
        cleanup: flags.get("custom-cleanup-exec")?,
    };
    let arguments = |name: &str| flags.all(&format!("custom-{name}-args"));
    let prepare = arguments("prepare");
    let runner = Runner::default()
        .programs(programs)
        .other_args(arguments("config"), arguments("run"), arguments("cleanup"))
        .prepare_args(
            &prepare
                .iter()
                .map(|argument| &**argument)
                .collect::<Vec<_>>(),
        )
        .graceful_kill_timeout(Duration::from_secs(
            flags.value("custom-graceful-kill-timeout", 600)?,
        ))
        .pause(BEFORE_RETRY);
    Ok(std::env::vars().fold(runner, |runner, (name, value)| {
        runner.variable(&name, &value)
    }))
}

fn next(server: &Server) -> Result<Option<Value>> {
    let text =
        json!({ "token": server.token, "info": { "name": "gitlab-runner", "executor": "custom" } });
    let response = server.ask(
        "POST",
        "jobs/request",
        "application/json",
        text.to_string().into_bytes(),
    )?;
    match response.status {
        201 => Ok(Some(
            serde_json::from_slice(&response.body).context("the server sends no JSON")?,
        )),
        204 => Ok(None),
        status => bail!("the server answers {status} to a request for a job"),
    }
}

fn run_job(url: &str, runner: &Runner, sent: Value, limit: usize, ending: &Ending) -> Result<()> {
    let job = Job::from_gitlab(sent).context("the server sends something that is no job")?;
    let trace = Trace::new(Server::new(url, job.token())?, job.id(), limit);
    let writer = Arc::clone(&trace);
    let remote = Arc::new(Remote::new(move |part| writer.write(part)));
    let _ = ending.running().insert(Arc::clone(&remote));
    if ending.is_abort.load(Ordering::SeqCst) {
        remote.ask(Then::Abort);
    }
    let (sender, seen) = (Arc::clone(&trace), Arc::clone(&remote));
    let sending = thread::spawn(move || sender.send(&seen));
    trace.write(b"Running with a stand-in for gitlab-runner\n");
    let report = runner.run_seen_by(&job, &remote);
    let _ = ending.running().take();
    report
        .warnings
        .iter()
        .for_each(|warning| trace.write(format!("WARNING: {warning}\n").as_bytes()));
    let outcome = match report.outcome {
        Outcome::Canceled if ending.is_abort.load(Ordering::SeqCst) => {
            Outcome::SystemFailure("aborted: the runner ends".to_owned())
        }
        outcome => outcome,
    };
    trace.write(trace::last_line(&outcome).as_bytes());
    trace.end();
    sending
        .join()
        .map_err(|_| anyhow::anyhow!("the log can't be sent"))??;
    trace.report(&outcome)
}

impl Ending {
    fn running(&self) -> std::sync::MutexGuard<'_, Option<Arc<Remote>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// SIGQUIT: no more jobs; SIGTERM and SIGINT: nor the one that runs; a second one of these: at once.
fn watch_signals(ending: &Arc<Ending>) -> Result<()> {
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT]
        .into_iter()
        .collect();
    signals.thread_block().context("can't block signals")?;
    let ending = Arc::clone(ending);
    thread::spawn(move || {
        while let Ok(signal) = signals.wait() {
            ending.is_asked.store(true, Ordering::SeqCst);
            if signal != Signal::SIGQUIT {
                if ending.is_abort.swap(true, Ordering::SeqCst) {
                    std::process::exit(1);
                }
                if let Some(remote) = &*ending.running() {
                    remote.ask(Then::Abort);
                }
            }
        }
    });
    Ok(())
}
