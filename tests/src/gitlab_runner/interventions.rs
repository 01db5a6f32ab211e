//! Interventions of tests in jobs that run without a server.

use std::fmt;

use super::Moment;

/// Content of the file that `JOB_RESPONSE_FILE` names.
#[derive(Clone, Debug, Default)]
pub enum Response {
    /// The JSON of the job.
    #[default]
    Genuine,
    /// The file is missing.
    Missing,
    /// The given bytes.
    Content(Vec<u8>),
}

/// Moment at which a test intervenes.
#[derive(Clone, Debug)]
pub enum When {
    /// The running stage has written this text to the log of the job.
    Log(String),
    /// The driver of this stage has just started.
    Start(&'static str),
}

/// Reaction of GitLab or of the runner at such a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reaction {
    /// The job continues.
    #[default]
    Continue,
    /// Only the running stage is cancelled. `after_script` and the stages after it still run.
    Canceling,
    /// The job is aborted, and cleanup follows.
    Abort,
}

type Action = Box<dyn Fn(&Moment) -> Reaction + Send + Sync>;

/// An action that is called once, at a given moment.
pub(super) struct Hook {
    pub(super) when: When,
    pub(super) action: Action,
}

impl fmt::Debug for Hook {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Hook({:?})", self.when)
    }
}

/// The interventions of a test in a job.
#[derive(Debug, Default)]
pub struct Interventions {
    pub(crate) response: Response,
    /// Names of stages, with the script files that replace the generated ones.
    pub(super) scripts: Vec<(String, String)>,
    pub(super) hooks: Vec<Hook>,
}

impl Interventions {
    /// Replaces the whole script file of a stage.
    pub(crate) fn replace_script(&mut self, stage: &str, text: &str) {
        self.scripts.retain(|(other, _)| other != stage);
        self.scripts.push((stage.to_owned(), text.to_owned()));
    }

    /// Has `action` called once when the moment `when` comes.
    pub(crate) fn add_hook(
        &mut self,
        when: When,
        action: impl Fn(&Moment) -> Reaction + Send + Sync + 'static,
    ) {
        self.hooks.push(Hook {
            when,
            action: Box::new(action),
        });
    }
}
