//! Error types, and the classification of failures.

use std::fmt;

use anyhow::Error;
use nix::sys::signal::Signal;

/// First line of an encoded error that the job has caused, or not.
const JOB: &str = "job";
const HOST: &str = "host";

/// Party that has to act on a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The author of the job. GitLab shows a build failure and does not retry the job.
    Job,
    /// The administrator of the host. GitLab shows a system failure and may retry the job.
    Host,
    /// The process that sent this signal to interrupt the program.
    Interrupted(Signal),
}

impl Fault {
    /// Returns the fault that `error` carries, or `None` for an error that is not a [`Failure`].
    ///
    /// An error without a fault counts as the host's. Its cause may need a diagnosis, whereas a
    /// [`Failure`] is explained by its message.
    pub fn of(error: &Error) -> Option<Self> {
        error.downcast_ref::<Failure>().map(|failure| failure.fault)
    }
}

/// Returns whether the author of the job can correct `error`.
pub fn is_job_fault(error: &Error) -> bool {
    Fault::of(error) == Some(Fault::Job)
}

/// Returns whether a signal that interrupted the program caused `error`.
pub fn is_interrupted(error: &Error) -> bool {
    matches!(Fault::of(error), Some(Fault::Interrupted(_)))
}

/// Encodes an error and whether the job has caused it, for a file that [`decode`] reads.
pub fn encode(error: &Error) -> String {
    let fault = if is_job_fault(error) { JOB } else { HOST };
    format!("{fault}\n{error:#}")
}

/// Decodes an error, in another process of these programs.
pub fn decode(text: &str) -> Option<Error> {
    let (fault, message) = text.split_once('\n')?;
    Some(if fault == JOB {
        Failure::job(message).into()
    } else {
        Error::msg(message.to_owned())
    })
}

/// Error with a known fault.
#[derive(Debug)]
pub struct Failure {
    fault: Fault,
    message: String,
}

impl Failure {
    /// Creates an error with this fault.
    pub fn new(fault: Fault, message: impl Into<String>) -> Self {
        Self {
            fault,
            message: message.into(),
        }
    }

    /// Creates an error that the author of the job can correct.
    pub fn job(message: impl Into<String>) -> Self {
        Self::new(Fault::Job, message)
    }

    /// Creates an error that the administrator of the host can correct.
    pub fn host(message: impl Into<String>) -> Self {
        Self::new(Fault::Host, message)
    }

    /// Creates the error of a program that `signal` interrupted.
    pub fn interrupted(signal: Signal) -> Self {
        Self::new(
            Fault::Interrupted(signal),
            format!("interrupted by {signal}"),
        )
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// Error of a command that exceeded its time limit.
#[derive(Debug)]
pub struct TimedOut(pub String);

impl fmt::Display for TimedOut {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::error::Error for TimedOut {}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;

    #[test]
    fn fault_is_found_below_context() {
        let failed = |failure: Failure| Err::<(), _>(failure).context("can't start").unwrap_err();
        assert!(is_job_fault(&failed(Failure::job("no image"))));
        assert!(is_interrupted(&failed(Failure::interrupted(
            Signal::SIGTERM
        ))));
        assert_eq!(
            Fault::of(&failed(Failure::host("no disk"))),
            Some(Fault::Host)
        );
        assert_eq!(Fault::of(&anyhow!("unknown")), None);
    }

    #[test]
    fn decoded_error_has_the_same_message_and_fault() {
        for error in [Failure::job("no\nimage").into(), anyhow!("no disk")] {
            let decoded = decode(&encode(&error)).unwrap();
            assert_eq!(decoded.to_string(), error.to_string());
            assert_eq!(Fault::of(&decoded), Fault::of(&error));
        }
        assert!(decode("").is_none());
    }
}
