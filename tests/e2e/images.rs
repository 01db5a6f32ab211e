//! Images of all kinds.
//!
//! | module | what it promises |
//! | --- | --- |
//! | [`disk`] | file systems in files, with and without partitions |
//! | [`minimal`] | images of a few files |
//! | [`lookup`] | what a name stands for, and that machinectl agrees |
//! | [`removal`] | images that are removed meanwhile |
//! | [`invalid`] | images that are none |

mod disk;
mod invalid;
mod lookup;
mod minimal;
mod removal;

use nspawn_common::image::lookup::SEARCH_PATH;
use nspawn_tests::{Machine, call, sh};

/// What a name may stand for, below a directory of [`SEARCH_PATH`]; the last is for what links lead to.
const SUFFIXES: [&str; 5] = ["", ".raw", ".v", ".raw.v", ".d"];

/// A name of images that nothing else has. What has it is deleted at the end of its test.
struct Name(String);

impl Name {
    fn new(kind: &str) -> Self {
        Self(format!("e2e-{kind}-{}", std::process::id()))
    }

    /// Where the image of this suffix is.
    fn path(&self, suffix: &str) -> String {
        format!("/var/lib/machines/{}{suffix}", self.0)
    }

    /// Runs lines of the host's shell, in which `$name` is this one.
    #[track_caller]
    fn sh(&self, lines: &str) -> String {
        sh(&format!(
            "set -e; name={}; cd /var/lib/machines; {lines}",
            self.0
        ))
        .expect(0)
        .out()
    }

    /// Deletes what has it.
    fn remove(&self) {
        let paths = SEARCH_PATH
            .iter()
            .flat_map(|place| SUFFIXES.map(|suffix| format!("{place}/{}{suffix}", self.0)));
        let _ = std::process::Command::new("rm")
            .args(["-rf", "--one-file-system"])
            .args(paths)
            .status();
    }

    /// A machine of the image.
    #[track_caller]
    fn machine(&self, options: &[&str]) -> Machine {
        Machine::of(&self.0, options)
    }

    /// Expects that no machine is made of it, which is told in one line with these words and leaves nothing.
    #[track_caller]
    fn is_refused(&self, options: &[&str], words: &str) -> String {
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

    /// The loop devices that its files have.
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
