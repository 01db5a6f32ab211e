//! Size limit of a layer.

use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::statvfs::statvfs;
use nspawn_common::cli::values;
use nspawn_common::config::layer::Layer;
use nspawn_common::lifecycle::limits;
use nspawn_common::machine::paths::LAYER_ROOT;

/// Smallest file system that a system boots on, in bytes.
const MIN: u64 = 32 << 20;
/// Largest file system that mkfs.ext4(8) creates without further options, in bytes.
const MAX: u64 = 8 << 40;
/// Mask that rounds down to MiB: a file system is a whole number of blocks.
const MEBIBYTES: u64 = !0xf_ffff;

/// Default of `--layer-size=`.
pub const DEFAULT: LayerSize = LayerSize::Percent(50);

/// Value of `--layer-size=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerSize {
    Bytes(u64),
    /// Percentage of the free space in the directory of layers, or of the host's memory.
    Percent(u64),
    Infinity,
}

impl LayerSize {
    /// Parses the value of the option.
    pub fn parse(text: &str) -> Result<Self> {
        if text == "infinity" {
            return Ok(Self::Infinity);
        }
        if let Some(percent) = text.strip_suffix('%') {
            return match percent.parse() {
                Ok(percent @ 1..=100) => Ok(Self::Percent(percent)),
                _ => bail!("{text} is not between 1% and 100%"),
            };
        }
        parse_bytes(text).map(Self::Bytes)
    }

    /// Returns the size for this kind of layer in bytes; `None` for unlimited.
    pub fn bytes(self, layer: Layer) -> Result<Option<u64>> {
        let total = if layer.is_in_memory() {
            limits::memory().context("can't determine the size of this host's memory")?
        } else {
            free_space_for_layers()?
        };
        Ok(match self {
            Self::Infinity => None,
            Self::Bytes(size) => Some(size),
            Self::Percent(percent) => Some((total / 100 * percent).clamp(MIN, MAX) & MEBIBYTES),
        })
    }
}

/// Parses the size of a file system in a file, in bytes.
pub fn parse_bytes(text: &str) -> Result<u64> {
    match values::parse_size(text)? {
        size @ MIN..=MAX => Ok(size),
        _ => bail!("{text} is not between {}M and {}T", MIN >> 20, MAX >> 40),
    }
}

fn free_space_for_layers() -> Result<u64> {
    let free = free_space(Path::new(LAYER_ROOT))
        .with_context(|| format!("can't determine the free space in {LAYER_ROOT}"))?;
    if free < MIN {
        bail!(
            "can't create a layer: {LAYER_ROOT} has only {} KiB of free space; free {} MiB",
            free >> 10,
            MIN >> 20
        );
    }
    Ok(free)
}

// If the directory does not exist yet, its parent's file system is where it will be.
fn free_space(directory: &Path) -> nix::Result<u64> {
    match (statvfs(directory), directory.parent()) {
        (Err(Errno::ENOENT), Some(parent)) => free_space(parent),
        (result, _) => result.map(|found| found.blocks_available() * found.fragment_size()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_every_kind_of_size() {
        assert_eq!(LayerSize::parse("10G").unwrap(), LayerSize::Bytes(10 << 30));
        assert_eq!(LayerSize::parse("5%").unwrap(), LayerSize::Percent(5));
        let infinity = LayerSize::parse("infinity").unwrap();
        assert_eq!(infinity.bytes(Layer::Disk).unwrap(), None);
    }

    #[test]
    fn bad_sizes_are_errors() {
        for bad in ["", "0", "1M", "0%", "101%", "-1%", "9T", "no"] {
            assert!(LayerSize::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn percentage_is_a_whole_number_of_blocks() {
        for layer in [Layer::Disk, Layer::Tmpfs] {
            let size = LayerSize::Percent(50).bytes(layer).unwrap().unwrap();
            assert!(size >= MIN && size % (1 << 20) == 0, "{size}");
        }
    }
}
