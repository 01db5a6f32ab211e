//! Command `run-single` (commands/single.go), which runs jobs from the server one by one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal};
use serde_json::{Value, json};

use super::client::Client;
use super::options::Options;
use super::trace::{self, Trace};
use crate::gitlab_runner::received::ReceivedJob;
use crate::gitlab_runner::remote::Remote;
use crate::gitlab_runner::{Outcome, Programs, Reaction, Runner};

/// Pause before the next request for a job when the server has none.
const PAUSE: Duration = Duration::from_millis(500);
/// Pause before config and prepare are retried.
const RETRY_PAUSE: Duration = Duration::from_secs(3);
/// Default of the maximum size of a log, in KiB.
const DEFAULT_OUTPUT_LIMIT: usize = 4096;

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

/// State of the program's end, which signals begin.
#[derive(Debug, Default)]
struct Ending {
    /// True if no more jobs are taken.
    is_requested: AtomicBool,
    /// True if the running job is aborted.
    is_abort: AtomicBool,
    /// Remote end of the running job.
    running: Mutex<Option<Arc<Remote>>>,
}

/// Runs the command.
pub fn run(words: &[String]) -> Result<()> {
    let options = Options::parse(words, &OPTIONS, &["verbose"])?;
    if options.get("executor")? != "custom" {
        bail!("the stand-in has the custom executor only");
    }
    let ending = Arc::<Ending>::default();
    watch_signals(&ending)?;
    let url = options.get("url")?;
    let client = Client::new(&url, &options.get("token")?)?;
    let runner = runner(&options)?;
    let mut jobs_left = options.value("max-builds", u32::MAX)?;
    let wait_timeout = Duration::from_secs(options.value("wait-timeout", u64::MAX)?);
    let limit = options.value("output-limit", DEFAULT_OUTPUT_LIMIT)? << 10;
    let mut last = Instant::now();
    while jobs_left > 0
        && last.elapsed() < wait_timeout
        && !ending.is_requested.load(Ordering::SeqCst)
    {
        match request_job(&client)? {
            None => thread::sleep(PAUSE),
            Some(job) => {
                run_job(&url, &runner, job, limit, &ending)?;
                jobs_left -= 1;
                last = Instant::now();
            }
        }
    }
    Ok(())
}

fn runner(options: &Options) -> Result<Runner> {
    let programs = Programs {
        config: options.get("custom-config-exec")?,
        prepare: options.get("custom-prepare-exec")?,
        run: options.get("custom-run-exec")?,
        cleanup: options.get("custom-cleanup-exec")?,
    };
    let arguments = |name: &str| options.all(&format!("custom-{name}-args"));
    let prepare = arguments("prepare");
    let exit_codes = Runner {
        build_failure: 1,
        system_failure: 2,
        ..Runner::default()
    };
    let runner = exit_codes
        .programs(programs)
        .other_args(arguments("config"), arguments("run"), arguments("cleanup"))
        .prepare_args(
            &prepare
                .iter()
                .map(|argument| &**argument)
                .collect::<Vec<_>>(),
        )
        .graceful_kill_timeout(Duration::from_secs(
            options.value("custom-graceful-kill-timeout", 600)?,
        ))
        .pause(RETRY_PAUSE);
    let inherited = std::env::vars();
    Ok(inherited.fold(runner, |runner, (name, value)| {
        runner.variable(&name, &value)
    }))
}

fn request_job(client: &Client) -> Result<Option<Value>> {
    let request =
        json!({ "token": client.token, "info": { "name": "gitlab-runner", "executor": "custom" } });
    let response = client.send(
        "POST",
        "jobs/request",
        "application/json",
        request.to_string().into_bytes(),
    )?;
    match response.status().as_u16() {
        201 => Ok(Some(
            serde_json::from_slice(response.body()).context("the server's answer is not JSON")?,
        )),
        204 => Ok(None),
        status => bail!("the server answers {status} to a request for a job"),
    }
}

fn run_job(url: &str, runner: &Runner, json: Value, limit: usize, ending: &Ending) -> Result<()> {
    let job = ReceivedJob::from_server(json).context("the server's answer is not a job")?;
    let trace = Trace::new(Client::new(url, &job.token)?, job.id, limit);
    let writer = Arc::clone(&trace);
    let remote = Arc::new(Remote::new(move |part| writer.write(part)));
    let _ = ending.running().insert(Arc::clone(&remote));
    if ending.is_abort.load(Ordering::SeqCst) {
        remote.request(Reaction::Abort);
    }
    let (sender, receiver) = (Arc::clone(&trace), Arc::clone(&remote));
    let sending = thread::spawn(move || sender.send(&receiver));
    trace.write(b"Running with a stand-in for gitlab-runner\n");
    let report = runner.run_received(&job, &remote);
    let _ = ending.running().take();
    for warning in &report.warnings {
        trace.write(format!("WARNING: {warning}\n").as_bytes());
    }
    let outcome = match report.outcome {
        Outcome::Canceled if ending.is_abort.load(Ordering::SeqCst) => Outcome::RunnerStopped,
        outcome => outcome,
    };
    trace.write(trace::last_line(&outcome, job.timeout).as_bytes());
    trace.end();
    sending
        .join()
        .map_err(|_| anyhow::anyhow!("can't send the log"))??;
    trace.report(&outcome)
}

impl Ending {
    fn running(&self) -> MutexGuard<'_, Option<Arc<Remote>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// After SIGQUIT the program takes no more jobs. SIGTERM and SIGINT also abort the running job, and
// a second one of these signals ends the program at once.
fn watch_signals(ending: &Arc<Ending>) -> Result<()> {
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT]
        .into_iter()
        .collect();
    signals.thread_block().context("can't block signals")?;
    let ending = Arc::clone(ending);
    thread::spawn(move || {
        while let Ok(signal) = signals.wait() {
            ending.is_requested.store(true, Ordering::SeqCst);
            if signal != Signal::SIGQUIT {
                if ending.is_abort.swap(true, Ordering::SeqCst) {
                    std::process::exit(1);
                }
                if let Some(remote) = &*ending.running() {
                    remote.request(Reaction::Abort);
                }
            }
        }
    });
    Ok(())
}
