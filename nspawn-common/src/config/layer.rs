//! `--layer=`: where a machine's writes go.

use crate::config::keyword::keywords;

/// Value of `--layer=`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layer {
    /// An overlay on the host's disk.
    #[default]
    Disk,
    /// An overlay in memory.
    Tmpfs,
    /// A copy of the image that shares its blocks.
    Snapshot,
    /// No layer. The root is read-only, and directories for temporary files are in memory.
    None,
}

impl Layer {
    /// Returns whether the machine's writes are lost when it stops.
    #[must_use]
    pub fn is_in_memory(self) -> bool {
        matches!(self, Self::Tmpfs | Self::None)
    }
}

keywords!(Layer {
    Disk => "disk",
    Tmpfs => "tmpfs",
    Snapshot => "snapshot",
    None => "none",
});

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::keyword;

    #[test]
    fn parse_accepts_exactly_the_printed_keywords() {
        keyword::check::<Layer>(&["", "Disk", "disk:", "overlay"]);
    }
}
