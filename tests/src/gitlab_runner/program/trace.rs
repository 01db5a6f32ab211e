//! Sends the log of a job to the server, which answers with the status of the job.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::client::Client;
use crate::gitlab_runner::remote::Remote;
use crate::gitlab_runner::{Outcome, Reaction};
use crate::http::{Response, header};

/// Maximum size of a part of the log, in bytes.
const MAX_PART: usize = 1 << 20;
/// Time for which the log is gathered before a part of it is sent.
const PAUSE: Duration = Duration::from_millis(100);
/// Interval of requests for the status of the job while the log does not grow.
const SILENCE: Duration = Duration::from_secs(5);

/// The log of one job.
#[derive(Debug)]
pub struct Trace {
    client: Client,
    job: u64,
    /// Maximum size of the log, in bytes.
    limit: usize,
    log: Mutex<Log>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Log {
    text: Vec<u8>,
    /// Number of bytes that the server has.
    sent: usize,
    /// True once the limit is exceeded.
    is_cut: bool,
    is_over: bool,
}

impl Trace {
    /// Creates the empty log of the job with this ID.
    pub fn new(client: Client, job: u64, limit: usize) -> Arc<Self> {
        Arc::new(Self {
            client,
            job,
            limit,
            log: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// Appends to the log. Bytes beyond the limit are dropped, and a message in the log says so.
    pub fn write(&self, part: &[u8]) {
        let mut log = self.log();
        if log.is_cut {
            return;
        }
        let room = self.limit.saturating_sub(log.text.len()).min(part.len());
        log.text.extend(&part[..room]);
        if room < part.len() {
            log.is_cut = true;
            let limit = self.limit;
            let line = format!(
                "\n\x1b[33;1mJob's log exceeded limit of {limit} bytes.\nJob execution will continue but no more \
                 output will be collected.\x1b[0;m\n"
            );
            log.text.extend(line.bytes());
        }
        self.changed.notify_all();
    }

    /// Sends the log as it grows, until its end.
    ///
    /// When the server answers that the job is cancelled, `remote` passes this on to the job.
    pub fn send(&self, remote: &Remote) -> Result<()> {
        while let Some((from, part)) = self.next_part() {
            let response = if part.is_empty() {
                self.touch()?
            } else {
                self.patch(from, &part)?
            };
            let job_status = header(response.headers(), "Job-Status");
            match (job_status, response.status().as_u16()) {
                ("canceled" | "failed", _) | (_, 403) => {
                    remote.request(Reaction::Abort);
                    return Ok(());
                }
                ("canceling", _) => remote.request(Reaction::Canceling),
                (_, 200 | 202) => {}
                (_, status) => bail!("the server answers {status} to a part of the log"),
            }
            self.log().sent = from + part.len();
        }
        Ok(())
    }

    /// Marks the log as complete.
    pub fn end(&self) {
        self.log().is_over = true;
        self.changed.notify_all();
    }

    /// Returns the next part and its offset, or `None` if the whole log has been sent.
    fn next_part(&self) -> Option<(usize, Vec<u8>)> {
        let is_waiting = |log: &mut Log| log.text.len() == log.sent && !log.is_over;
        let wait = self
            .changed
            .wait_timeout_while(self.log(), SILENCE, is_waiting);
        let log = wait.unwrap_or_else(PoisonError::into_inner).0;
        let wait = self.changed.wait_timeout_while(log, PAUSE, |log| {
            !log.is_over && log.text.len() - log.sent < MAX_PART
        });
        let log = wait.unwrap_or_else(PoisonError::into_inner).0;
        let part = &log.text[log.sent..];
        if part.is_empty() && log.is_over {
            return None;
        }
        let length = part.len().min(MAX_PART);
        Some((log.sent, part[..length].to_vec()))
    }

    fn patch(&self, from: usize, part: &[u8]) -> Result<Response> {
        let range = format!("{from}-{}", from + part.len() - 1);
        let target = format!("jobs/{}/trace", self.job);
        self.client.send_trace(&target, &range, part.to_vec())
    }

    /// Requests the status of the job.
    fn touch(&self) -> Result<Response> {
        self.put(&json!({ "token": self.client.token, "state": "running" }))
    }

    /// Reports the outcome of the job to the server.
    pub fn report(&self, outcome: &Outcome) -> Result<()> {
        let (state, reason, code) = state_and_reason(outcome);
        let mut report = json!({
            "token": self.client.token, "state": state, "output": { "bytesize": self.log().text.len() },
        });
        if !reason.is_empty() {
            report["failure_reason"] = reason.into();
        }
        if code != 0 {
            report["exit_code"] = code.into();
        }
        match self.put(&report)?.status().as_u16() {
            // The server answers 403 if it has cancelled the job.
            200 | 403 => Ok(()),
            status => bail!("the server answers {status} to the end of a job"),
        }
    }

    fn put(&self, report: &Value) -> Result<Response> {
        self.client.send(
            "PUT",
            &format!("jobs/{}", self.job),
            "application/json",
            report.to_string().into_bytes(),
        )
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns state, reason of failure and exit code (common/network.go, `JobFailureReason`).
fn state_and_reason(outcome: &Outcome) -> (&'static str, &'static str, i32) {
    match outcome {
        Outcome::Success => ("success", "", 0),
        Outcome::ScriptFailure(code) => ("failed", "script_failure", *code),
        Outcome::SystemFailure(_) => ("failed", "runner_system_failure", 0),
        Outcome::Canceled => ("failed", "job_canceled", 0),
        Outcome::TimedOut => ("failed", "job_execution_timeout", 0),
        Outcome::RunnerStopped => ("failed", "runner_interrupted", 0),
    }
}

/// Returns the last line of the log of a job with this time limit, which states the outcome.
pub fn last_line(outcome: &Outcome, limit: Duration) -> String {
    let why = match outcome {
        Outcome::Success => return "\x1b[32;1mJob succeeded\x1b[0;m\n".to_owned(),
        Outcome::ScriptFailure(code) => format!("Job failed: exit status {code}"),
        Outcome::SystemFailure(why) => format!("Job failed (system failure): {why}"),
        Outcome::Canceled => "Job failed: canceled".to_owned(),
        Outcome::TimedOut => format!("Job failed: execution took longer than {limit:?} seconds"),
        Outcome::RunnerStopped => "Job failed: aborted: terminated".to_owned(),
    };
    format!("\x1b[31;1mERROR: {why}\x1b[0;m\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_is_cut_at_its_limit_once() {
        let trace = Trace::new(Client::new("http://198.51.100.7", "x").unwrap(), 7, 5);
        trace.write(b"abc");
        assert_eq!(trace.next_part(), Some((0, b"abc".to_vec())));
        trace.log().sent = 3;
        trace.write(b"defg");
        trace.write(b"hij");
        trace.end();
        let (from, part) = trace.next_part().unwrap();
        let part = String::from_utf8(part).unwrap();
        assert!(
            from == 3
                && part.starts_with("de\n")
                && part.matches("exceeded limit of 5 bytes").count() == 1,
            "{part}"
        );
        assert!(!part.contains("efg") && !part.contains("hij"), "{part}");
        trace.log().sent = 3 + part.len();
        assert_eq!(trace.next_part(), None);
    }
}
