//! The two choices that make a machine: what runs as its PID 1, and where its writes go.

use std::fmt;
use std::path::PathBuf;

use anyhow::Result;

use crate::config::choice;
use crate::machine::paths::MachinePaths;

/// `--init=`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Init {
    /// The image's systemd: the machine is booted.
    #[default]
    Systemd,
    /// systemd-nspawn's stub init (systemd-nspawn(1), `--as-pid2`), which keeps the machine for the agent.
    Stub,
    /// Nothing between runs: each starts the machine, and ends it.
    None,
}

impl Init {
    const NAMES: [(&'static str, Self); 3] = [
        ("systemd", Self::Systemd),
        ("stub", Self::Stub),
        ("none", Self::None),
    ];
    /// All of them, as the option has them.
    pub const WORDS: [&'static str; 3] = choice::words(&Self::NAMES);

    /// Reads one of [`Init::WORDS`].
    ///
    /// # Errors
    /// It is another word.
    pub fn parse(word: &str) -> Result<Self> {
        choice::value_of(word, &Self::NAMES)
    }
}

impl fmt::Display for Init {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(choice::word_of(self, &Self::NAMES))
    }
}

/// `--layer=`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layer {
    /// An overlay on the host's disk.
    #[default]
    Disk,
    /// An overlay in memory.
    Tmpfs,
    /// A copy of the image that shares its blocks.
    Snapshot,
    /// None: the root is read-only, and there is memory for what is temporary.
    None,
}

impl Layer {
    const NAMES: [(&'static str, Self); 4] = [
        ("disk", Self::Disk),
        ("tmpfs", Self::Tmpfs),
        ("snapshot", Self::Snapshot),
        ("none", Self::None),
    ];
    /// All of them, as the option has them.
    pub const WORDS: [&'static str; 4] = choice::words(&Self::NAMES);

    /// Reads one of [`Layer::WORDS`].
    ///
    /// # Errors
    /// It is another word.
    pub fn parse(word: &str) -> Result<Self> {
        choice::value_of(word, &Self::NAMES)
    }

    /// Where its directories are. One of `sized` bytes on disk is a file system of its own.
    #[must_use]
    pub fn root(self, paths: &MachinePaths, sized: bool) -> PathBuf {
        match self {
            Self::Disk if !sized => paths.layer(),
            Self::Snapshot => paths.layer(),
            _ => paths.disk_mount(),
        }
    }

    /// Whether it is in memory.
    #[must_use]
    pub fn is_in_memory(self) -> bool {
        [Self::Tmpfs, Self::None].contains(&self)
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(choice::word_of(self, &Self::NAMES))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_as_they_are_written() {
        for word in Init::WORDS {
            assert_eq!(Init::parse(word).unwrap().to_string(), word);
        }
        for word in Layer::WORDS {
            assert_eq!(Layer::parse(word).unwrap().to_string(), word);
        }
        for bad in ["", "Systemd", "disk:", "overlay"] {
            assert!(
                Init::parse(bad).is_err() && Layer::parse(bad).is_err(),
                "{bad}"
            );
        }
    }
}
