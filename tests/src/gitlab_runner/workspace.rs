//! Temporary directory of one attempt at a job, and the files in it.

use std::fs::{DirBuilder, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;
use tempfile::TempDir;

use super::interventions::Response;

/// A directory of mode 0700, which is the working directory of drivers and their `TMPDIR`.
#[derive(Debug)]
pub struct Workspace {
    directory: TempDir,
}

impl Workspace {
    /// Creates a directory for the job with this JSON.
    pub fn new(json: &Value, response: &Response) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("custom-executor-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir()
            .unwrap_or_else(|error| panic!("can't create a temporary directory: {error}"));
        let workspace = Self { directory };
        match response {
            Response::Genuine => write(&workspace.response(), json.to_string().as_bytes(), 0o600),
            Response::Missing => {}
            Response::Content(bytes) => write(&workspace.response(), bytes, 0o600),
        }
        workspace
    }

    /// Returns the path of the directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Returns the value of `JOB_RESPONSE_FILE`.
    pub fn response(&self) -> PathBuf {
        self.path().join("response.json")
    }

    /// Returns the value of `BUILD_EXIT_CODE_FILE`.
    pub fn exit_code(&self) -> PathBuf {
        self.path().join("build_exit_code")
    }

    /// Creates a file that holds the script `text`, and returns its path.
    pub fn script(&self, text: &str) -> PathBuf {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let directory = self.path().join(format!("script{number}"));
        DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
        let path = directory.join("script.");
        write(&path, text.as_bytes(), 0o700);
        path
    }
}

fn write(path: &Path, content: &[u8], mode: u32) {
    let result = OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| file.write_all(content));
    result.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}
