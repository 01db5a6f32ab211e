//! A stand-in for GitLab: as much of its API as runners use, and its repositories, on an address of its own that
//! machines of jobs reach as they reach anything outside. It keeps what it is told, for tests to look at.
//!
//! Modelled on GitLab's API for runners (its `lib/api/ci/runner.rb`) and what GitLab Runner 19.4 asks of it
//! (`network/`).
//!
//! | module | holds |
//! | --- | --- |
//! | here | [`GitLab`]: the server, and what tests do with it |
//! | [`requests`] | what it answers |
//! | [`jobs`] | what it knows of jobs: [`Known`], [`Status`] |
//! | [`stuck`] | jobs whose runners are never heard of again, and those that come anew |
//! | [`work`] | a job, as it is sent to a runner: [`Work`] |
//! | [`git`] | the repositories: [`Repository`] |
//! | [`network`] | the place where it listens |

mod git;
mod jobs;
mod network;
mod requests;
mod stuck;
mod work;

use std::fs;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use crate::http::Request;

pub use git::Repository;
use jobs::Jobs;
pub use jobs::{Known, Status, Upload};
use network::Place;
pub use stuck::STUCK;
pub use work::Work;

/// The token of every runner. One that is to be told from others has `-` and a name behind it.
pub const RUNNER_TOKEN: &str = "glrt-never-log-this";

/// How long a test waits for anything.
const LIMIT: Duration = Duration::from_secs(150);

/// A server, gone at the end of its test.
#[derive(Debug)]
pub struct GitLab {
    shared: Arc<Shared>,
    _place: Place,
    /// Kept open, and so the place with it.
    _listener: Arc<TcpListener>,
}

#[derive(Debug)]
struct Shared {
    jobs: Mutex<Jobs>,
    changed: Condvar,
    /// Where the repositories are.
    root: PathBuf,
}

impl Shared {
    fn jobs(&self) -> MutexGuard<'_, Jobs> {
        self.jobs
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl GitLab {
    /// A new one, which has no jobs.
    #[must_use]
    pub fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        // Jobs of all GitLabs on the host have different numbers.
        let next_id = u64::from(std::process::id()) * 1_000_000
            + COUNT.fetch_add(1, Ordering::Relaxed) * 1_000;
        let root = std::env::temp_dir().join(format!("gitlab-{next_id}"));
        let (place, listener) = Place::new();
        let jobs = Jobs {
            next_id,
            url: format!("http://{}", place.address.ip()),
            ..Jobs::default()
        };
        let shared = Arc::new(Shared {
            jobs: Mutex::new(jobs),
            changed: Condvar::new(),
            root,
        });
        let listener = Arc::new(listener);
        let (accepting, serving) = (Arc::clone(&listener), Arc::clone(&shared));
        thread::spawn(move || accept(&accepting, &serving));
        Self {
            shared,
            _place: place,
            _listener: listener,
        }
    }

    /// Its URL.
    #[must_use]
    pub fn url(&self) -> String {
        self.shared.jobs().url.clone()
    }

    /// A new repository `GROUP/PROJECT`, with these files in one commit.
    #[must_use]
    pub fn repository(&self, path: &str, files: &[(&str, &str)]) -> Repository {
        Repository::new(&self.shared.root, path, files)
    }

    /// Has git's next `count` requests fail.
    pub fn fail_git(&self, count: u32) {
        self.shared.jobs().broken = count;
    }

    /// Has a job wait for a runner; returns its number.
    #[must_use]
    pub fn add(&self, work: Work) -> u64 {
        self.shared.jobs().add(work)
    }

    /// What somebody does who cancels a job: its script is to end, but its `after_script` still runs.
    pub fn cancel(&self, id: u64) {
        self.set(id, Status::Canceling);
    }

    /// The same once more, by force: nothing of it is to run any longer.
    pub fn abort(&self, id: u64) {
        self.set(id, Status::Canceled);
    }

    fn set(&self, id: u64, status: Status) {
        if let Some(job) = self.shared.jobs().all.get_mut(&id) {
            job.status = status;
        }
        self.shared.changed.notify_all();
    }

    /// Waits until a job's log shows `text`.
    #[track_caller]
    pub fn wait_for_log(&self, id: u64, text: &str) {
        let shows = |job: &Known| {
            job.trace
                .windows(text.len())
                .any(|part| part == text.as_bytes())
        };
        let job = self.wait_until(id, |job| shows(job) || job.is_over());
        assert!(shows(&job), "no {text:?} in {}", job.describe());
    }

    /// Waits for a job's end.
    #[track_caller]
    #[must_use]
    pub fn wait(&self, id: u64) -> Known {
        let job = self.wait_until(id, Known::is_over);
        assert!(job.is_over(), "{}", job.describe());
        job
    }

    /// What is known of a job now.
    #[track_caller]
    #[must_use]
    pub fn job(&self, id: u64) -> Known {
        let job = self.shared.jobs().all.get(&id).cloned();
        job.unwrap_or_else(|| panic!("there is no job {id}"))
    }

    fn wait_until(&self, id: u64, is_it: impl Fn(&Known) -> bool) -> Known {
        let deadline = Instant::now() + LIMIT;
        let mut jobs = self.shared.jobs();
        loop {
            let job = jobs
                .all
                .get(&id)
                .unwrap_or_else(|| panic!("there is no job {id}"));
            let left = deadline.saturating_duration_since(Instant::now());
            if is_it(job) || left.is_zero() {
                return job.clone();
            }
            let waited = self.shared.changed.wait_timeout(jobs, left);
            jobs = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
    }
}

impl Default for GitLab {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for GitLab {
    fn drop(&mut self) {
        // Wakes the thread that accepts: the socket takes no more.
        let _ = nix::sys::socket::shutdown(
            std::os::fd::AsRawFd::as_raw_fd(&*self._listener),
            nix::sys::socket::Shutdown::Both,
        );
        let _ = fs::remove_dir_all(&self.shared.root);
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        let Ok(stream) = stream else { return };
        let shared = Arc::clone(shared);
        thread::spawn(move || serve(&stream, &shared));
    }
}

// A client that ends in the middle is no error here: it has been killed, or it will tell.
fn serve(stream: &TcpStream, shared: &Shared) {
    if let Ok(request) = Request::read(stream) {
        let _ = requests::answer(&request, shared).send(stream);
        shared.changed.notify_all();
    }
    let _ = stream.shutdown(Shutdown::Both);
}
