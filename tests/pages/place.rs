//! Where a reader works: a host with the images that the pages name, and a project.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nspawn_tests::{Done, finish, image, sh};

use crate::repository;

const IMAGES: &str = "/var/lib/machines";
/// What the pages call images.
const NAMES: [&str; 2] = ["bookworm", "trixie"];

/// The host as a reader has it, and as it was when this is dropped.
pub struct Place {
    links: Vec<PathBuf>,
    /// The host's own image, while it is away.
    away: Option<PathBuf>,
}

impl Place {
    /// With an image of each name.
    pub fn new() -> Self {
        sh("apt-get install --yes make parallel >&2 && mkdir -p /etc/gitlab-runner /srv/mirror").expect(0);
        let missing = NAMES.iter().map(|name| Path::new(IMAGES).join(name)).filter(|path| !path.exists());
        let links: Vec<_> = missing.collect();
        for link in &links {
            std::os::unix::fs::symlink(image(), link).unwrap();
        }
        Self { links, away: None }
    }

    /// Without the one that the page makes first.
    pub fn without_images() -> Self {
        let mut place = Self::new();
        let own = Path::new(IMAGES).join(image());
        let away = Path::new(IMAGES).join(".away");
        sh(&format!("! mountpoint --quiet {0} || {{ umount {0} && rmdir {0}; }}", own.display())).expect(0);
        if own.exists() {
            fs::rename(&own, &away).unwrap();
            place.away = Some(away);
        }
        place
    }

    /// Runs the commands in a project, which has these files.
    pub fn run(&self, files: &[(String, String)], commands: &str) -> Done {
        let project = std::env::temp_dir().join(format!("pages-{}", std::process::id()));
        fs::create_dir_all(&project).unwrap();
        for (path, text) in files {
            fs::write(project.join(path), text).unwrap();
        }
        fs::write(project.join("token"), "glrt-page\n").unwrap();
        let scripts = repository().join("scripts");
        let setting = "git init -q; git config user.name x; git config user.email x@example.com; echo x >x.md; \
                       git add x.md; git commit -qm x";
        let script =
            format!("set -eo pipefail; cd {}; {setting}; ln -s {} .\n{commands}", project.display(), scripts.display());
        let done = finish(Command::new("bash").args(["-c", &script]), b"");
        fs::remove_dir_all(&project).unwrap();
        done
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for link in &self.links {
            let _ = fs::remove_file(link);
        }
        let Some(away) = &self.away else { return };
        let own = Path::new(IMAGES).join(image());
        let _ = sh(&format!("rm -rf {0} {0}.v", own.display()));
        fs::rename(away, own).unwrap();
    }
}
