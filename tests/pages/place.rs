//! A host with the images that the pages name, and a project, as a reader has them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use nspawn_tests::{Done, finish, image, install, sh};

use crate::repository;

const IMAGES: &str = "/var/lib/machines";
/// Names of images in the pages.
const NAMES: [&str; 2] = ["bookworm", "trixie"];

/// The state of the host for the pages. The former state returns when this is dropped.
pub struct Place {
    links: Vec<PathBuf>,
    /// An empty directory, mounted on the host's directory of images.
    empty: Option<PathBuf>,
}

impl Place {
    /// Prepares a host with an image of each name.
    pub fn new() -> Self {
        // The dependencies of debci include another program named parallel.
        install("make parallel");
        sh("mkdir -p /etc/gitlab-runner /etc/nspawn-ci /srv/mirror").expect(0);
        let missing = NAMES
            .iter()
            .map(|name| Path::new(IMAGES).join(name))
            .filter(|path| !path.exists());
        let links: Vec<_> = missing.collect();
        for link in &links {
            symlink(image(), link).unwrap();
        }
        Self { links, empty: None }
    }

    /// Prepares a host without images, for a page that creates them.
    pub fn without_images() -> Self {
        let mut place = Self::new();
        let empty = PathBuf::from(format!("/var/lib/pages-{}", std::process::id()));
        fs::create_dir(&empty).unwrap();
        sh(&format!("mount --bind {} {IMAGES}", empty.display())).expect(0);
        place.empty = Some(empty);
        place
    }

    /// Runs nspawn-prepare with an argument file, as a dry run.
    pub fn check_argument_file(&self, path: &str, text: &str) -> Done {
        let line = "mount -t tmpfs none /etc/nspawn-ci && cat >\"$1\" && nspawn-prepare --dry-run bookworm";
        finish(
            Command::new("unshare").args(["--mount", "sh", "-c", line, "-", path]),
            text.as_bytes(),
        )
    }

    /// Runs commands in a project with these files.
    pub fn run(&self, files: &[(String, String)], commands: &str) -> Done {
        let project = std::env::temp_dir().join(format!("pages-{}", std::process::id()));
        fs::create_dir_all(&project).unwrap();
        for (path, text) in files {
            fs::write(project.join(path), text).unwrap();
        }
        let scripts = repository().join("scripts");
        let set_up = "git init -q; git config user.name x; git config user.email x@example.com; echo x >x.md; \
                       git add x.md; git commit -qm x";
        let script = format!(
            "set -eo pipefail; cd {}; {set_up}; ln -s {} .\n{commands}",
            project.display(),
            scripts.display()
        );
        let done = finish(Command::new("bash").args(["-c", &script]), b"glrt-page\n");
        fs::remove_dir_all(&project).unwrap();
        done
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(empty) = &self.empty {
            let _ = sh(&format!(
                "umount --lazy {IMAGES} && rm -rf {}",
                empty.display()
            ));
        }
        let _ = sh("rm -rf /etc/gitlab-runner /srv/mirror");
        for link in &self.links {
            let _ = fs::remove_file(link);
        }
    }
}
