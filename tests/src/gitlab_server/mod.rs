//! Stand-in for GitLab: the part of its API that runners use, and its repositories.
//!
//! It listens at an address of its own, which the machines of jobs reach in the same way as any
//! address outside of the host. It keeps all that runners send, so that tests can look at it.
//!
//! It is modelled on GitLab's API for runners (`lib/api/ci/runner.rb` in GitLab) and on the
//! requests of GitLab Runner 19.4 (`network/`).
//!
//! | module | contents |
//! | --- | --- |
//! | here | server, and the methods by which tests use it: [`GitLab`] |
//! | `requests` | answers to requests |
//! | `jobs` | jobs as the server sees them: [`ServerJob`], [`Status`] |
//! | `stuck` | jobs whose runners have fallen silent, and retries |
//! | `repository` | git repositories: [`Repository`] |
//! | `network` | network namespace in which the server listens |

mod jobs;
mod network;
mod repository;
mod requests;
mod stuck;

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::http::Server;
use crate::job::Job;

use jobs::Jobs;
pub use jobs::{ServerJob, Status};
pub use repository::Repository;
pub use stuck::STUCK;

pub use crate::multipart::FormFile;

/// Token of every runner. A runner that tests tell apart from others appends `-` and a name.
pub const RUNNER_TOKEN: &str = "glrt-never-log-this";

/// Time limit for each event for which a test waits. A job takes minutes in an emulated host.
const LIMIT: Duration = Duration::from_secs(660);

/// A server, which stops when the value is dropped.
#[derive(Debug)]
pub struct GitLab {
    shared: Arc<Shared>,
    _server: Server,
    /// Directory of the repositories.
    _root: TempDir,
}

/// State that the server shares with the threads that answer requests.
#[derive(Debug)]
struct Shared {
    jobs: Mutex<Jobs>,
    changed: Condvar,
    /// Directory of the repositories.
    root: PathBuf,
}

impl Shared {
    fn jobs(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl GitLab {
    /// Starts a server that has no jobs.
    #[must_use]
    pub fn new() -> Self {
        let (listener, address) = network::listener_outside();
        Self::start(listener, format!("http://{address}"))
    }

    /// Starts a server that has no jobs and listens on the loopback interface.
    #[cfg(test)]
    pub(crate) fn on_loopback() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        Self::start(listener, url)
    }

    fn start(listener: TcpListener, url: String) -> Self {
        let root = tempfile::tempdir()
            .unwrap_or_else(|error| panic!("can't create a temporary directory: {error}"));
        let jobs = Jobs {
            next_id: first_id(),
            url,
            ..Jobs::default()
        };
        let shared = Arc::new(Shared {
            jobs: Mutex::new(jobs),
            changed: Condvar::new(),
            root: root.path().to_owned(),
        });
        Self {
            _server: start_server(listener, &shared),
            shared,
            _root: root,
        }
    }

    /// Returns the URL of the server.
    pub fn url(&self) -> String {
        self.shared.jobs().url.clone()
    }

    /// Creates the repository `GROUP/PROJECT`, with these files in one commit.
    pub fn repository(&self, path: &str, files: &[(&str, &str)]) -> Repository {
        Repository::new(&self.shared.root, path, files)
    }

    /// Has the next `count` requests of git fail.
    pub fn fail_git(&self, count: u32) {
        self.shared.jobs().git_failures = count;
    }

    /// Adds a job that waits for a runner, and returns its ID.
    pub fn add(&self, job: Job) -> u64 {
        self.shared.jobs().add(Arc::new(job))
    }

    /// Cancels a job. Its script ends, and its `after_script` still runs.
    pub fn cancel(&self, id: u64) {
        self.set_status(id, Status::Canceling);
    }

    /// Cancels a job by force. Nothing more of it runs.
    pub fn abort(&self, id: u64) {
        self.set_status(id, Status::Canceled);
    }

    fn set_status(&self, id: u64, status: Status) {
        if let Some(job) = self.shared.jobs().all.get_mut(&id) {
            job.status = status;
        }
        self.shared.changed.notify_all();
    }

    /// Waits until the log of a job shows `text`.
    #[track_caller]
    pub fn wait_for_log(&self, id: u64, text: &str) {
        let shows = |job: &ServerJob| {
            job.trace
                .windows(text.len())
                .any(|part| part == text.as_bytes())
        };
        let job = self.wait_until(id, |job| shows(job) || job.is_over());
        assert!(shows(&job), "no {text:?} in {}", job.describe());
    }

    /// Waits until a job ends.
    #[track_caller]
    #[must_use]
    pub fn wait(&self, id: u64) -> ServerJob {
        let job = self.wait_until(id, ServerJob::is_over);
        assert!(job.is_over(), "{}", job.describe());
        job
    }

    /// Returns the present state of a job.
    #[track_caller]
    pub fn job(&self, id: u64) -> ServerJob {
        let job = self.shared.jobs().all.get(&id).cloned();
        job.unwrap_or_else(|| panic!("there is no job {id}"))
    }

    /// Returns the present state of all jobs.
    pub fn all(&self) -> Vec<ServerJob> {
        self.shared.jobs().all.values().cloned().collect()
    }

    /// Waits until `condition` holds, and returns whether it does within the time limit.
    ///
    /// The argument of `condition` is all jobs. Meanwhile jobs fail whose runners send nothing for
    /// `silence`.
    #[must_use]
    pub fn wait_for_all(
        &self,
        silence: Duration,
        condition: impl Fn(&[&ServerJob]) -> bool,
    ) -> bool {
        let deadline = Instant::now() + LIMIT;
        let mut jobs = self.shared.jobs();
        loop {
            jobs.fail_stuck(silence, Instant::now());
            let holds = condition(&jobs.all.values().collect::<Vec<_>>());
            if holds || Instant::now() >= deadline {
                return holds;
            }
            let next = jobs
                .next_stuck(silence)
                .map_or(deadline, |next| next.min(deadline));
            jobs = self.wait_for_change(jobs, next);
        }
    }

    fn wait_until(&self, id: u64, condition: impl Fn(&ServerJob) -> bool) -> ServerJob {
        let deadline = Instant::now() + LIMIT;
        let mut jobs = self.shared.jobs();
        loop {
            let job = jobs
                .all
                .get(&id)
                .unwrap_or_else(|| panic!("there is no job {id}"));
            if condition(job) || Instant::now() >= deadline {
                return job.clone();
            }
            jobs = self.wait_for_change(jobs, deadline);
        }
    }

    fn wait_for_change<'a>(
        &self,
        jobs: MutexGuard<'a, Jobs>,
        deadline: Instant,
    ) -> MutexGuard<'a, Jobs> {
        let left = deadline.saturating_duration_since(Instant::now());
        let waited = self.shared.changed.wait_timeout(jobs, left);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Default for GitLab {
    fn default() -> Self {
        Self::new()
    }
}

// The jobs of all servers on the host have different IDs.
fn first_id() -> u64 {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    u64::from(std::process::id()) * 1_000_000 + COUNT.fetch_add(1, Ordering::Relaxed) * 1_000
}

fn start_server(listener: TcpListener, shared: &Arc<Shared>) -> Server {
    let (answering, notifying) = (Arc::clone(shared), Arc::clone(shared));
    Server::start(
        listener,
        move |request| requests::answer(request, &answering),
        move || notifying.changed.notify_all(),
    )
}
