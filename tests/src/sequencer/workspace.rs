//! The temporary directory of one attempt at a job, and the files in it.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::job::{Job, Response};

static COUNT: AtomicU64 = AtomicU64::new(0);

/// The directory, 0700: a driver's working directory and its `TMPDIR`.
#[derive(Debug)]
pub struct Workspace {
    pub directory: PathBuf,
}

impl Workspace {
    /// A fresh one for `job`.
    pub fn new(job: &Job) -> Self {
        let name = format!(
            "custom-executor-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let directory = std::env::temp_dir().join(name);
        make_directory(&directory);
        let workspace = Self { directory };
        match &job.response {
            Response::Genuine => write(
                &workspace.response(),
                job.to_json().to_string().as_bytes(),
                0o600,
            ),
            Response::Missing => {}
            Response::Content(bytes) => write(&workspace.response(), bytes, 0o600),
        }
        workspace
    }

    /// What `JOB_RESPONSE_FILE` says.
    pub fn response(&self) -> PathBuf {
        self.directory.join("response.json")
    }

    /// What `BUILD_EXIT_CODE_FILE` says.
    pub fn exit_code(&self) -> PathBuf {
        self.directory.join("build_exit_code")
    }

    /// A new file that holds the script `text`.
    pub fn script(&self, text: &str) -> PathBuf {
        let directory = self
            .directory
            .join(format!("script{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        make_directory(&directory);
        let path = directory.join("script.");
        write(&path, text.as_bytes(), 0o700);
        path
    }

    /// Deletes it with all that is in it.
    pub fn remove(&self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn make_directory(path: &Path) {
    let made = DirBuilder::new().mode(0o700).create(path);
    made.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

fn write(path: &Path, content: &[u8], mode: u32) {
    let written = OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| file.write_all(content));
    written.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}
