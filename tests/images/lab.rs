//! Sources of images, images that are removed at the end of their test, and searches for leftovers.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

use nspawn_tests::{Done, call, expect_message, finish, image, sh};

/// A system without systemd. Creating an image from it is fast.
pub static SMALL: LazyLock<PathBuf> = LazyLock::new(|| {
    let (tree, tar) = (scratch("small"), scratch("small").with_extension("tar"));
    let line = format!(
        "set -e; mkdir -p {0}/usr {0}/etc {0}/root; \
         for dir in bin lib lib64; do mkdir {0}/usr/$dir; ln -s usr/$dir {0}/$dir; done; \
         for program in sh cat ls mkdir touch sleep rm ln date env id chmod; do \
             program=$(realpath $(command -v $program)); cp $program {0}/usr/bin; \
             ldd $program | grep -o '/[^ ]*' | while read library; do \
                 copy={0}/usr/${{library#/usr}}; mkdir -p ${{copy%/*}}; cp -L $library $copy; done; done; \
         cp -a /bin/sh {0}/usr/bin; tar -C {0} -cf {1} .",
        tree.display(),
        tar.display()
    );
    sh(&line).expect(0);
    tar
});

/// The host's own image, which boots.
pub static FULL: LazyLock<PathBuf> = LazyLock::new(|| {
    let tar = scratch("full").with_extension("tar");
    sh(&format!(
        "tar -C /var/lib/machines/{} --numeric-owner -cf {} .",
        image(),
        tar.display()
    ))
    .expect(0);
    tar
});

/// The same image without files that a boot does not need. It has a third of the size.
pub static BOOTS: LazyLock<PathBuf> = LazyLock::new(|| {
    let tar = scratch("boots").with_extension("tar");
    let line = format!(
        "tar -C /var/lib/machines/{} --numeric-owner --exclude='*perl*' --exclude='*git*' --exclude=gconv \
         --exclude='./usr/share/[lmz]*' --exclude=./usr/share/doc --exclude=./var/lib/dpkg --exclude='./var/cache/*' \
         --exclude='hwdb.*' -cf {} .",
        image(),
        tar.display()
    );
    sh(&line).expect(0);
    tar
});

/// Returns a unique path.
pub fn scratch(name: &str) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let dir = PathBuf::from(format!("/var/tmp/images-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    dir.join(format!("{name}-{}", COUNT.fetch_add(1, Ordering::Relaxed)))
}

/// Creates a script that customizes an image.
pub fn script(lines: &str) -> PathBuf {
    let path = scratch("script");
    write_script(&path, lines);
    path
}

pub fn write_script(path: &Path, lines: &str) {
    fs::write(path, format!("#!/bin/sh\nset -e\n{lines}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// An image, which is removed at the end of its test.
pub struct Image {
    pub name: String,
}

impl Image {
    /// Returns an image with a unique name, which does not exist yet.
    pub fn named(name: &str) -> Self {
        Self {
            name: format!("{name}-{}", std::process::id()),
        }
    }

    /// Creates an image from a tar file.
    #[track_caller]
    pub fn from_tar(name: &str, tar: &Path, options: &[&str]) -> Self {
        let image = Self::named(name);
        let from = ["--from-tar", tar.to_str().unwrap()];
        image.run("create", &[&from, options].concat()).expect(0);
        image
    }

    /// Runs a command of `nspawn-image` on the image.
    #[track_caller]
    pub fn run(&self, verb: &str, options: &[&str]) -> Done {
        finish(&mut self.command(verb, options), b"")
    }

    pub fn command(&self, verb: &str, options: &[&str]) -> Command {
        let mut command = Command::new("nspawn-image");
        command.args([verb, &self.name]).args(options);
        command
    }

    /// Starts an update in the background, without its diagnostics.
    #[track_caller]
    pub fn start_update(&self, options: &[&str]) -> Child {
        let mut update = self.command("update", options);
        update.stderr(Stdio::null()).spawn().unwrap()
    }

    /// Returns the path of a file in the current version.
    pub fn file(&self, name: &str) -> PathBuf {
        Path::new("/var/lib/machines").join(&self.name).join(name)
    }

    #[track_caller]
    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap()
    }

    /// Returns the name of the current version.
    #[track_caller]
    pub fn current(&self) -> String {
        let target = fs::read_link(self.file("").components().as_path()).unwrap();
        target
            .to_str()
            .unwrap()
            .strip_prefix(&format!("{}.v/", self.name))
            .unwrap()
            .to_owned()
    }

    /// Returns the names of all versions, the oldest first.
    pub fn versions(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.versions_dir()) else {
            return Vec::new();
        };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| !name.starts_with('.')).collect();
        names.sort();
        names
    }

    pub fn versions_dir(&self) -> PathBuf {
        PathBuf::from(format!("/var/lib/machines/{}.v", self.name))
    }

    pub fn description(&self) -> PathBuf {
        PathBuf::from(format!("/etc/nspawn-ci/images/{}.image", self.name))
    }

    /// Lists leftovers of commands on the image: hidden trees, links, machines, processes, units.
    pub fn leftovers(&self) -> String {
        let name = &self.name;
        sh(&format!(
            "ls -d /var/lib/machines/.{name}.* /run/machines/{name}-next-* /etc/nspawn-ci/images/.{name}.* 2>/dev/null; \
             grep -l {name}-next /run/nspawn-ci/*/state.json 2>/dev/null; grep -F /.{name}. /proc/mounts; \
             pgrep -af '[.]{name}[.]nspawn-'; true"
        ))
        .out()
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = Command::new("nspawn-image")
            .args(["remove", &self.name])
            .output();
        let _ = fs::remove_file(self.description());
    }
}

/// Checks that a command failed with one line that contains `words`. Lines about its steps may
/// precede that line, and indented lines of another tool may follow it.
#[track_caller]
pub fn expect_failure(done: Done, words: &str) -> Done {
    let done = done.expect(1);
    let err = done.err();
    let lines = err
        .lines()
        .skip_while(|line| line.starts_with("nspawn-image: ["));
    expect_message(lines, "nspawn-image: ", words, &done.describe());
    done
}

/// Waits until a shell command succeeds.
#[track_caller]
pub fn wait_for(condition: &str) {
    let line = format!("until {condition}; do sleep 0.05; done");
    call("timeout", ["20", "sh", "-c", &line]).expect(0);
}

/// Returns the number of tries of a test with random moments.
pub fn times(usually: u64, long: u64) -> u64 {
    if std::env::var_os("NSPAWN_TESTS_LONG").is_some_and(|value| !value.is_empty()) {
        long
    } else {
        usually
    }
}

/// Returns the line of `nspawn-image list` for an image.
pub fn listed(name: &str) -> Option<String> {
    let out = call("nspawn-image", ["list"]).expect(0).out();
    out.lines()
        .find(|line| line.split_whitespace().next() == Some(name))
        .map(str::to_owned)
}
