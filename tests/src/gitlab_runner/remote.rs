//! Reader of a job's log, who may also cancel the job while it runs.

use std::fmt;
use std::sync::mpsc::Sender;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::driver::Event;
use super::interventions::Reaction;
use super::stages;

type Reader = Box<dyn Fn(&[u8]) + Send + Sync>;

/// The remote end of a job: a reader of its log, and requests to end it.
#[derive(Default)]
pub struct Remote {
    reader: Option<Reader>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    requested: Reaction,
    /// Channel on which the running stage waits for events.
    events: Option<Sender<Event>>,
}

impl fmt::Debug for Remote {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Remote({:?})", self.inner)
    }
}

impl Remote {
    /// Creates a remote end that passes the log to `reader`, part by part.
    #[must_use]
    pub fn new(reader: impl Fn(&[u8]) + Send + Sync + 'static) -> Self {
        Self {
            reader: Some(Box::new(reader)),
            inner: Mutex::default(),
        }
    }

    /// Requests that the job ends in this way. A request to abort the job is final.
    pub fn request(&self, reaction: Reaction) {
        let mut inner = self.inner();
        if inner.requested != Reaction::Abort {
            inner.requested = reaction;
        }
        if let Some(events) = &inner.events {
            let _ = events.send(Event::Requested);
        }
    }

    /// Passes a part of the log to the reader.
    pub(super) fn write(&self, log: &[u8]) {
        if let Some(reader) = &self.reader {
            reader(log);
        }
    }

    /// Returns what the request means for `stage`.
    ///
    /// A job that is cancelled before its script is aborted, and after the script nothing is left
    /// to cancel (common/build.go, `executeUserScripts`).
    pub(super) fn request_for(&self, stage: &str) -> Reaction {
        let requested = self.inner().requested;
        match (requested, stage) {
            (_, "cleanup") => Reaction::Continue,
            (Reaction::Canceling, _) if stages::is_before_script(stage) => Reaction::Abort,
            (Reaction::Canceling, _) if stages::is_after_script(stage) => Reaction::Continue,
            _ => requested,
        }
    }

    /// Sets the channel on which requests reach the running stage.
    pub(super) fn wake(&self, events: Option<Sender<Event>>) {
        self.inner().events = events;
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cancel_ends_the_script_and_abort_ends_everything_but_cleanup() {
        let remote = Remote::default();
        let all = [
            "prepare",
            "get_sources",
            "build_script",
            "step_new",
            "after_script",
            "archive_cache",
            "cleanup",
        ];
        let requests = |remote: &Remote| all.map(|stage| remote.request_for(stage));
        assert_eq!(requests(&remote), [Reaction::Continue; 7]);
        remote.request(Reaction::Canceling);
        let (canceling, abort, proceed) =
            (Reaction::Canceling, Reaction::Abort, Reaction::Continue);
        assert_eq!(
            requests(&remote),
            [
                abort, abort, canceling, canceling, proceed, proceed, proceed
            ]
        );
        remote.request(Reaction::Abort);
        remote.request(Reaction::Canceling);
        assert_eq!(
            requests(&remote),
            [abort, abort, abort, abort, abort, abort, proceed]
        );
    }
}
