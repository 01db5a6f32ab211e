//! What a machine writes to: a file system in a file, which bounds it and is deleted at once; or, without a
//! bound, directories of the host's.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::statvfs::statvfs;
use nspawn_common::args;
use nspawn_common::paths::LAYER_ROOT;

/// The smallest file system that a system boots on, in bytes.
const LEAST: u64 = 32 << 20;
/// The largest that ext4 makes without more ado, in bytes.
const MOST: u64 = 8 << 40;

/// `--layer-size=`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerSize {
    Bytes(u64),
    /// A part of what is free where layers are.
    Percent(u64),
    Infinity,
}

impl LayerSize {
    /// Reads the option's value.
    pub fn parse(text: &str) -> Result<Self> {
        if text == "infinity" {
            return Ok(Self::Infinity);
        }
        if let Some(percent) = text.strip_suffix('%') {
            return match percent.parse() {
                Ok(percent @ 1..=100) => Ok(Self::Percent(percent)),
                _ => bail!("{text} is no part of 100%"),
            };
        }
        match args::parse_size(text)? {
            size @ LEAST..=MOST => Ok(Self::Bytes(size)),
            _ => bail!("{text} is not between {}M and {}T", LEAST >> 20, MOST >> 40),
        }
    }

    /// The size in bytes; `None` for no bound.
    pub fn bytes(self) -> Result<Option<u64>> {
        let free = free_bytes().with_context(|| format!("can't tell what is free in {LAYER_ROOT}"))?;
        if free < LEAST {
            bail!(
                "No space left for a layer: {} KiB are free in {LAYER_ROOT}, make it {} MiB",
                free >> 10,
                LEAST >> 20
            );
        }
        Ok(match self {
            Self::Infinity => None,
            Self::Bytes(size) => Some(size),
            // A file system is a whole number of blocks.
            Self::Percent(percent) => Some((free / 100 * percent).clamp(LEAST, MOST) & !0xf_ffff),
        })
    }
}

// Of the file system that layers are on, or will be.
fn free_bytes() -> nix::Result<u64> {
    let mut place = Path::new(LAYER_ROOT);
    loop {
        match (statvfs(place), place.parent()) {
            (Err(Errno::ENOENT), Some(parent)) => place = parent,
            (there, _) => return there.map(|there| there.blocks_available() * there.fragment_size()),
        }
    }
}

/// Makes sure that the kernel has loop devices: only then does systemd know what to allow a unit of them.
pub fn check_loop_devices() -> Result<()> {
    File::open("/dev/loop-control").map(drop).context("this host has no loop devices; see --layer-size=infinity")
}

/// Makes the file system. A journal is for what must outlive a crash.
pub fn format_command(disk: &Path) -> Vec<OsString> {
    let options = ["mkfs.ext4", "-q", "-F", "-m", "0", "-i", "8192", "-O", "^has_journal,^resize_inode", "-E"];
    let options = options.into_iter().chain(["lazy_itable_init=1,nodiscard"]).map(OsStr::new);
    options.chain([disk.as_os_str()]).map(OsString::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_asked_for() {
        assert_eq!(LayerSize::parse("10G").unwrap(), LayerSize::Bytes(10 << 30));
        assert_eq!(LayerSize::parse("5%").unwrap(), LayerSize::Percent(5));
        assert_eq!(LayerSize::parse("infinity").unwrap().bytes().unwrap(), None);
        for bad in ["", "0", "1M", "0%", "101%", "-1%", "9T", "no"] {
            assert!(LayerSize::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_part_of_what_is_free_is_a_whole_number_of_blocks() {
        let size = LayerSize::Percent(50).bytes().unwrap().unwrap();
        assert!(size >= LEAST && size % (1 << 20) == 0, "{size}");
    }
}
