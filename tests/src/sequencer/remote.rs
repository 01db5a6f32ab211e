//! What goes on outside of a job while it runs: its log is read as it is written, and somebody may end it.

use std::fmt;
use std::sync::mpsc::Sender;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::job::Then;
use super::process::Event;
use super::stages;

type Reader = Box<dyn Fn(&[u8]) + Send + Sync>;

/// The outside of one job.
#[derive(Default)]
pub struct Remote {
    reader: Option<Reader>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    asked: Then,
    /// What the running stage waits for.
    events: Option<Sender<Event>>,
}

impl fmt::Debug for Remote {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Remote({:?})", self.inner)
    }
}

impl Remote {
    /// One that has the log given to `reader`, part by part.
    #[must_use]
    pub fn new(reader: impl Fn(&[u8]) + Send + Sync + 'static) -> Self {
        Self {
            reader: Some(Box::new(reader)),
            inner: Mutex::default(),
        }
    }

    /// Ends the job in this way. Once it is aborted it stays so.
    pub fn ask(&self, then: Then) {
        let mut inner = self.inner();
        if inner.asked != Then::Abort {
            inner.asked = then;
        }
        if let Some(events) = &inner.events {
            let _ = events.send(Event::Asked);
        }
    }

    pub(super) fn write(&self, log: &[u8]) {
        if let Some(reader) = &self.reader {
            reader(log);
        }
    }

    /// What was asked means this for `stage`: as long as the script has not begun a job that is cancelled is aborted,
    /// after it nothing is left to cancel (common/build.go, `executeUserScripts`).
    pub(super) fn wish(&self, stage: &str) -> Then {
        let asked = self.inner().asked;
        match (asked, stage) {
            (_, "cleanup") => Then::Continue,
            (Then::Canceling, _) if stages::is_before_script(stage) => Then::Abort,
            (Then::Canceling, _) if stages::is_after_script(stage) => Then::Continue,
            _ => asked,
        }
    }

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
    fn a_cancel_is_for_the_script_alone_and_an_abort_for_all_but_the_cleanup() {
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
        let wishes = |remote: &Remote| all.map(|stage| remote.wish(stage));
        assert_eq!(wishes(&remote), [Then::Continue; 7]);
        remote.ask(Then::Canceling);
        let (then, no) = (Then::Canceling, Then::Continue);
        assert_eq!(
            wishes(&remote),
            [Then::Abort, Then::Abort, then, then, no, no, no]
        );
        remote.ask(Then::Abort);
        remote.ask(Then::Canceling);
        let abort = Then::Abort;
        assert_eq!(
            wishes(&remote),
            [abort, abort, abort, abort, abort, abort, no]
        );
    }
}
