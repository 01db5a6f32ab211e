//! A job's log on its way to the server, which answers how the job is.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::server::Server;
use crate::http::{Request, Response};
use crate::sequencer::{Outcome, Remote, Then};

/// No part of the log is larger, in bytes.
const LARGEST_PART: usize = 1 << 20;
/// How long the log is gathered before a part of it is sent.
const PAUSE: Duration = Duration::from_millis(100);
/// After so long without anything to send, the server is asked all the same.
const SILENCE: Duration = Duration::from_secs(5);

/// The log of one job.
#[derive(Debug)]
pub struct Trace {
    server: Server,
    job: u64,
    /// What the server may have of it, in bytes.
    limit: usize,
    log: Mutex<Log>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Log {
    text: Vec<u8>,
    sent: usize,
    is_cut: bool,
    is_over: bool,
}

impl Trace {
    /// That of `job`.
    pub fn new(server: Server, job: u64, limit: usize) -> Arc<Self> {
        Arc::new(Self {
            server,
            job,
            limit,
            log: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// Adds to it; what is beyond the limit is dropped, once with a word that says so.
    pub fn write(&self, part: &[u8]) {
        let mut log = self.log();
        let room = self.limit.saturating_sub(log.text.len()).min(part.len());
        if !log.is_cut {
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
        }
        self.changed.notify_all();
    }

    /// Sends it as it grows, until the end, and has the job ended when the server says so.
    pub fn send(&self, remote: &Remote) -> Result<()> {
        while let Some((from, part)) = self.next() {
            let response = if part.is_empty() {
                self.touch()?
            } else {
                self.patch(from, &part)?
            };
            match (response.headers.get("Job-Status"), response.status) {
                (Some("canceled" | "failed"), _) | (_, 403) => {
                    remote.ask(Then::Abort);
                    return Ok(());
                }
                (Some("canceling"), _) => remote.ask(Then::Canceling),
                (_, 200 | 202) => {}
                (_, status) => bail!("the server answers {status} to a part of the log"),
            }
            self.log().sent = from + part.len();
        }
        Ok(())
    }

    /// There is no more of it.
    pub fn end(&self) {
        self.log().is_over = true;
        self.changed.notify_all();
    }

    // What is to be sent next, and from where on; nothing when all is sent.
    fn next(&self) -> Option<(usize, Vec<u8>)> {
        let is_waiting = |log: &mut Log| log.text.len() == log.sent && !log.is_over;
        let wait = self
            .changed
            .wait_timeout_while(self.log(), SILENCE, is_waiting);
        let log = wait.unwrap_or_else(PoisonError::into_inner).0;
        let wait = self.changed.wait_timeout_while(log, PAUSE, |log| {
            !log.is_over && log.text.len() - log.sent < LARGEST_PART
        });
        let log = wait.unwrap_or_else(PoisonError::into_inner).0;
        let part = &log.text[log.sent..];
        (!part.is_empty() || !log.is_over)
            .then(|| (log.sent, part[..part.len().min(LARGEST_PART)].to_vec()))
    }

    fn patch(&self, from: usize, part: &[u8]) -> Result<Response> {
        let request = Request::new("PATCH", &format!("/api/v4/jobs/{}/trace", self.job));
        let request = request.header(
            "Content-Range",
            &format!("{from}-{}", from + part.len() - 1),
        );
        self.server.send(request.body("text/plain", part.to_vec()))
    }

    fn touch(&self) -> Result<Response> {
        self.put(&json!({ "token": self.server.token, "state": "running" }))
    }

    /// Tells the server how the job has ended.
    pub fn report(&self, outcome: &Outcome) -> Result<()> {
        let (state, reason, code) = words(outcome);
        let text = json!({
            "token": self.server.token, "state": state, "failure_reason": reason, "exit_code": code,
            "output": { "bytesize": self.log().text.len() },
        });
        match self.put(&text)?.status {
            // It is cancelled there.
            200 | 403 => Ok(()),
            status => bail!("the server answers {status} to the end of a job"),
        }
    }

    fn put(&self, text: &Value) -> Result<Response> {
        self.server.ask(
            "PUT",
            &format!("jobs/{}", self.job),
            "application/json",
            text.to_string().into_bytes(),
        )
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// common/network.go, JobFailureReason
fn words(outcome: &Outcome) -> (&'static str, &'static str, i32) {
    match outcome {
        Outcome::Success => ("success", "", 0),
        Outcome::ScriptFailure(code) => ("failed", "script_failure", *code),
        Outcome::SystemFailure(_) => ("failed", "runner_system_failure", 0),
        Outcome::Canceled => ("failed", "job_canceled", 0),
        Outcome::TimedOut => ("failed", "job_execution_timeout", 0),
    }
}

/// What the last line of the log says.
pub fn last_line(outcome: &Outcome) -> String {
    let why = match outcome {
        Outcome::Success => return "\x1b[32;1mJob succeeded\x1b[0;m\n".to_owned(),
        Outcome::ScriptFailure(code) => format!("Job failed: exit code {code}"),
        Outcome::SystemFailure(why) => format!("Job failed (system failure): {why}"),
        Outcome::Canceled => "Job failed: canceled".to_owned(),
        Outcome::TimedOut => "Job failed: execution took too long".to_owned(),
    };
    format!("\x1b[31;1mERROR: {why}\x1b[0;m\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_cut_at_its_limit_once() {
        let trace = Trace::new(Server::new("http://198.51.100.7", "x").unwrap(), 7, 5);
        trace.write(b"abc");
        assert_eq!(trace.next(), Some((0, b"abc".to_vec())));
        trace.log().sent = 3;
        trace.write(b"defg");
        trace.write(b"hij");
        trace.end();
        let (from, part) = trace.next().unwrap();
        let part = String::from_utf8(part).unwrap();
        assert!(
            from == 3
                && part.starts_with("de\n")
                && part.matches("exceeded limit of 5 bytes").count() == 1,
            "{part}"
        );
        assert!(!part.contains("efg") && !part.contains("hij"), "{part}");
        trace.log().sent = 3 + part.len();
        assert_eq!(trace.next(), None);
    }
}
