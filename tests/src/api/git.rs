//! The repositories, served by the real git.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::finish;
use crate::http::{Request, Response};

/// A repository on the server.
#[derive(Clone, Debug)]
pub struct Repository {
    directory: PathBuf,
    /// Its path there: `GROUP/PROJECT`.
    pub path: String,
    /// Its newest commit.
    pub commit: String,
}

impl Repository {
    /// A new one below `root`, with these files in one commit.
    pub(super) fn new(root: &Path, path: &str, files: &[(&str, &str)]) -> Self {
        let directory = root.join(format!("{path}.git"));
        fs::create_dir_all(&directory)
            .unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
        git(
            &directory,
            &["init", "--quiet", "--bare", "--initial-branch=main"],
            b"",
        );
        let mut new = Self {
            directory,
            path: path.to_owned(),
            commit: String::new(),
        };
        new.commit(files, None);
        new
    }

    /// Adds a commit with these files alone, and `submodule`, the path and the repository of one.
    pub fn commit(&mut self, files: &[(&str, &str)], submodule: Option<(&str, &Repository)>) {
        let mut entries: Vec<_> = files
            .iter()
            .map(|(path, text)| self.blob(path, text))
            .collect();
        if let Some((path, other)) = submodule {
            // As seen from this one's URL.
            let (_, name) = other.path.rsplit_once('/').unwrap_or(("", &other.path));
            entries.push(self.blob(
                ".gitmodules",
                &format!("[submodule \"{path}\"]\n\tpath = {path}\n\turl = ../{name}.git\n"),
            ));
            entries.push(format!("160000 commit {}\t{path}", other.commit));
        }
        let tree = git(
            &self.directory,
            &["mktree", "--missing"],
            entries.join("\n").as_bytes(),
        );
        let parent = if self.commit.is_empty() {
            Vec::new()
        } else {
            vec!["-p", &*self.commit]
        };
        let commit = [&["commit-tree", &*tree, "-m", "a commit"], &*parent].concat();
        let commit = git(&self.directory, &commit, b"");
        git(
            &self.directory,
            &["update-ref", "refs/heads/main", &commit],
            b"",
        );
        self.commit = commit;
    }

    // An entry for mktree.
    fn blob(&self, path: &str, text: &str) -> String {
        let name = git(
            &self.directory,
            &["hash-object", "-w", "--stdin"],
            text.as_bytes(),
        );
        format!("100644 blob {name}\t{path}")
    }
}

fn git(directory: &Path, words: &[&str], input: &[u8]) -> String {
    let mut command = Command::new("git");
    command.arg("-C").arg(directory).args([
        "-c",
        "user.name=tests",
        "-c",
        "user.email=tests@gitlab.example",
    ]);
    finish(command.args(words), input)
        .expect(0)
        .out()
        .trim_end()
        .to_owned()
}

/// What git's own server answers (git-http-backend(1)).
pub fn serve(root: &Path, request: &Request) -> Response {
    let header = |name| request.headers.get(name).unwrap_or_default();
    let mut command = Command::new("git");
    command
        .arg("http-backend")
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REMOTE_USER", "gitlab-ci-token");
    command
        .env("PATH_INFO", &request.path)
        .env("REQUEST_METHOD", &request.method)
        .env("QUERY_STRING", &request.query);
    command
        .env("CONTENT_TYPE", header("Content-Type"))
        .env("CONTENT_LENGTH", request.body.len().to_string());
    command
        .env("HTTP_CONTENT_ENCODING", header("Content-Encoding"))
        .env("GIT_PROTOCOL", header("Git-Protocol"));
    command.env("HOME", root).env("REMOTE_ADDR", "machine");
    let done = finish(&mut command, &request.body);
    Response::from_cgi(&done.stdout)
        .unwrap_or_else(|_| Response::new(500).body("text/plain", done.stderr))
}
