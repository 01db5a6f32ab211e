//! Images of all kinds.
//!
//! | module | covers |
//! | --- | --- |
//! | [`disk`] | disk images, with and without partitions |
//! | [`foreign`] | images for other architectures |
//! | [`minimal`] | images of a few files |
//! | [`names`] | images whose files for names are missing, links or others |
//! | [`old`] | images whose systemd is too old to boot |
//! | [`lookup`] | the path of the image for a name, as in machinectl |
//! | [`stack`] | stacks of layers |
//! | [`removal`] | images that are removed while a machine is created |
//! | [`invalid`] | paths that are not images |

mod disk;
mod foreign;
mod invalid;
mod lookup;
mod minimal;
mod names;
mod old;
mod removal;
mod stack;

use nspawn_common::image::lookup::SEARCH_PATH;
use nspawn_tests::{Machine, call, image, sh};

/// Suffixes of image paths below a directory of [`SEARCH_PATH`]; `.d` is for targets of symlinks.
const SUFFIXES: [&str; 6] = ["", ".raw", ".v", ".raw.v", ".mstack", ".d"];

/// A unique image name. All images of this name are deleted at the end of the test.
pub struct Name(pub String);

impl Name {
    fn new(kind: &str) -> Self {
        Self(format!("e2e-{kind}-{}", std::process::id()))
    }

    /// Makes a copy of the test host's image.
    #[track_caller]
    pub fn copy(kind: &str) -> Self {
        let name = Self::new(kind);
        name.sh(&format!("cp --archive $(realpath {}) $name", image()));
        name
    }

    /// Returns the path of the image with this suffix.
    pub fn path(&self, suffix: &str) -> String {
        format!("/var/lib/machines/{}{suffix}", self.0)
    }

    /// Runs lines of the host's shell, in which `$name` is this name.
    #[track_caller]
    pub fn sh(&self, lines: &str) -> String {
        sh(&format!(
            "set -e; name={}; cd /var/lib/machines; {lines}",
            self.0
        ))
        .expect(0)
        .out()
    }

    /// Deletes all images of this name.
    fn remove(&self) {
        let paths = SEARCH_PATH
            .iter()
            .flat_map(|place| SUFFIXES.map(|suffix| format!("{place}/{}{suffix}", self.0)));
        let _ = std::process::Command::new("rm")
            .args(["-rf", "--one-file-system"])
            .args(paths)
            .status();
    }

    /// Creates a machine of the image.
    #[track_caller]
    pub fn machine(&self, options: &[&str]) -> Machine {
        Machine::of(&self.0, options)
    }

    /// Expects that prepare fails in one line with these words, and leaves nothing. Returns stderr.
    #[track_caller]
    pub fn expect_refused(&self, options: &[&str], words: &str) -> String {
        let name = self.0.replace("e2e", "refused");
        let done = call(
            "nspawn-prepare",
            options.iter().chain(&["--name", &name, &self.0]),
        )
        .expect_error(1, words);
        assert_eq!(nspawn_tests::left_of(&name), "");
        assert_eq!(self.loop_devices(), "");
        done.err()
    }

    /// Lists the loop devices of the image's files.
    fn loop_devices(&self) -> String {
        sh(&format!(
            "losetup --list --noheadings --output=NAME,BACK-FILE | grep -F /{} || true",
            self.0
        ))
        .out()
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        self.remove();
    }
}
