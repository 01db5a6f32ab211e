//! Repositories, which the real git serves.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ureq::http::StatusCode;

use crate::command::finish;
use crate::http::{Request, Response, from_cgi, header, with_body};

/// A repository on the server.
#[derive(Clone, Debug)]
pub struct Repository {
    directory: PathBuf,
    /// Path of the repository on the server: `GROUP/PROJECT`.
    pub path: String,
    /// Hash of the newest commit.
    pub commit: String,
}

impl Repository {
    /// Creates a repository below `root`, with these files in one commit.
    pub(super) fn new(root: &Path, path: &str, files: &[(&str, &str)]) -> Self {
        let directory = root.join(format!("{path}.git"));
        fs::create_dir_all(&directory)
            .unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
        git(
            &directory,
            &["init", "--quiet", "--bare", "--initial-branch=main"],
            b"",
        );
        let mut repository = Self {
            directory,
            path: path.to_owned(),
            commit: String::new(),
        };
        repository.commit(files, None);
        repository
    }

    /// Adds a commit that holds these files, and no others.
    ///
    /// `submodule` is the path and the repository of a submodule that the commit holds as well.
    pub fn commit(&mut self, files: &[(&str, &str)], submodule: Option<(&str, &Repository)>) {
        let mut entries: Vec<_> = files
            .iter()
            .map(|(path, text)| self.blob(path, text))
            .collect();
        if let Some((path, other)) = submodule {
            // The URL of the submodule is relative to the URL of this repository.
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

    /// Stores a file, and returns its entry for `git mktree`.
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
    command.arg("-C").arg(directory);
    command.args(["-c", "user.name=tests"]);
    command.args(["-c", "user.email=tests@gitlab.example"]);
    let done = finish(command.args(words), input).expect(0);
    done.out().trim_end().to_owned()
}

/// Answers a request of git, by calling git-http-backend(1) as a CGI program.
pub fn serve(root: &Path, request: &Request) -> Response {
    let uri = request.uri();
    let mut command = Command::new("git");
    command
        .arg("http-backend")
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", root)
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REMOTE_USER", "gitlab-ci-token")
        .env("REMOTE_ADDR", "machine")
        .env("REQUEST_METHOD", request.method().as_str())
        .env("PATH_INFO", uri.path())
        .env("QUERY_STRING", uri.query().unwrap_or_default())
        .env("CONTENT_LENGTH", request.body().len().to_string());
    for (variable, name) in [
        ("CONTENT_TYPE", "Content-Type"),
        ("HTTP_CONTENT_ENCODING", "Content-Encoding"),
        ("GIT_PROTOCOL", "Git-Protocol"),
    ] {
        command.env(variable, header(request.headers(), name));
    }
    let done = finish(&mut command, request.body());
    from_cgi(&done.stdout)
        .unwrap_or_else(|_| with_body(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", done.stderr))
}
