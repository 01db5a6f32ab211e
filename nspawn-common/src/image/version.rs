//! Chooses the newest version of an image in a directory `NAME.v/` of trees, or `NAME.raw.v/` of
//! disk images (systemd.v(7), since systemd 256).

use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::error::Failure;
use crate::image::architecture;

/// All architectures that systemd knows.
const ARCHITECTURES: &str = "x86 x86-64 ppc ppc-le ppc64 ppc64-le ia64 parisc parisc64 s390 s390x sparc sparc64 mips \
    mips-le mips64 mips64-le alpha arm arm-be arm64 arm64-be sh sh64 loongarch64 m68k tilegx cris nios2 riscv32 \
    riscv64 arc arc-be";

/// Returns the newest version of the image `name` in `directory`, or `None` if there is no version.
///
/// Versions are directories `NAME_VERSION`, or files `NAME_VERSION.raw` if `suffix` is `.raw`. An
/// architecture and the boot counter `+LEFT[-DONE]` may follow the version.
///
/// # Errors
/// Fails if two entries have the same version, or if the newest is a dangling link.
pub fn newest(directory: &Path, name: &str, suffix: &str) -> Result<Option<PathBuf>> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("can't read {}", directory.display()))?;
    let mut newest: Option<(Entry, PathBuf)> = None;
    let mut twin = None;
    for path in entries.flatten().map(|entry| entry.path()) {
        // A dangling link counts, so that it is reported.
        let is_of_kind = !path.exists()
            || if suffix.is_empty() {
                path.is_dir()
            } else {
                path.is_file()
            };
        let entry = path
            .file_name()
            .and_then(|file| Entry::parse(file.to_str()?.strip_suffix(suffix)?, name));
        let Some(entry) = entry.filter(|_| is_of_kind) else {
            continue;
        };
        match newest
            .as_ref()
            .map_or(Ordering::Greater, |(best, _)| entry.compare(best))
        {
            Ordering::Greater => (newest, twin) = (Some((entry, path)), None),
            Ordering::Equal => twin = Some(path),
            Ordering::Less => {}
        }
    }
    match (newest, twin) {
        (Some((_, path)), None) if !path.exists() => {
            bail!(Failure::job(format!(
                "can't use the image {name}: its newest version {} is a link to a missing file; remove it",
                path.display()
            )))
        }
        (Some((_, path)), Some(twin)) => bail!(Failure::job(format!(
            "can't use the image {name}: {} and {} are the same version; remove one",
            path.display(),
            twin.display()
        ))),
        (newest, _) => Ok(newest.map(|(_, path)| path)),
    }
}

#[derive(Debug)]
struct Entry {
    version: String,
    /// Preference for the architecture: its position in [`architecture::OF_HOST`], counted from the
    /// end. 0 if the name has no architecture.
    preference: usize,
    /// Number of boot attempts that are left (systemd.v(7)).
    left: u64,
    /// Number of boot attempts that failed.
    done: u64,
}

impl Entry {
    fn parse(file: &str, name: &str) -> Option<Self> {
        let rest = file.strip_prefix(name)?.strip_prefix('_')?;
        let counted = rest
            .rsplit_once('+')
            .and_then(|(rest, counter)| Some((rest, parse_counter(counter)?)));
        let (rest, (left, done)) = counted.unwrap_or((rest, (u64::MAX, u64::MAX)));
        // The text after the last underscore is an architecture, known or not, and no part of the
        // version.
        let (version, architecture) = rest.rsplit_once('_').unwrap_or((rest, ""));
        let preference = architecture::OF_HOST
            .iter()
            .rev()
            .position(|known| *known == architecture)
            .map_or(0, |place| place + 1);
        let is_foreign =
            preference == 0 && ARCHITECTURES.split(' ').any(|known| known == architecture);
        (!version.is_empty() && !is_foreign).then(|| Self {
            version: version.to_owned(),
            preference,
            left,
            done,
        })
    }

    fn compare(&self, other: &Self) -> Ordering {
        // All other versions are preferred to one without attempts left.
        let tries = (self.left > 0).cmp(&(other.left > 0));
        let counters = || {
            self.left
                .cmp(&other.left)
                .then_with(|| other.done.cmp(&self.done))
        };
        tries
            .then_with(|| compare(&self.version, &other.version))
            .then_with(|| self.preference.cmp(&other.preference))
            .then_with(counters)
    }
}

/// Parses the counter `LEFT[-DONE]`.
fn parse_counter(text: &str) -> Option<(u64, u64)> {
    let number = |text: &str| -> Option<u64> {
        text.bytes()
            .all(|byte| byte.is_ascii_digit())
            .then(|| text.parse().ok())
            .flatten()
    };
    match text.split_once('-') {
        Some((left, done)) => Some((number(left)?, number(done)?)),
        None => Some((number(text)?, 0)),
    }
}

/// Compares versions by the Version Format Specification of the UAPI group, as systemd does.
#[must_use]
pub fn compare(one: &str, other: &str) -> Ordering {
    let (mut one, mut other) = (one.as_bytes(), other.as_bytes());
    loop {
        (one, other) = (skip_separators(one), skip_separators(other));
        // A tilde comes before the end, which comes before all else.
        if let Some(order) = compare_mark(&mut one, &mut other, b'~') {
            return order;
        }
        if one.is_empty() || other.is_empty() {
            return one.len().cmp(&other.len());
        }
        if let Some(order) = [b'-', b'^', b'.']
            .iter()
            .find_map(|mark| compare_mark(&mut one, &mut other, *mark))
        {
            return order;
        }
        let is_number = one.first().is_some_and(u8::is_ascii_digit)
            || other.first().is_some_and(u8::is_ascii_digit);
        let is_part = if is_number {
            u8::is_ascii_digit
        } else {
            u8::is_ascii_alphabetic
        };
        let (a, b) = (take_part(&mut one, is_part), take_part(&mut other, is_part));
        let order = if is_number {
            compare_numbers(a, b)
        } else {
            a.cmp(b)
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

fn skip_separators(text: &[u8]) -> &[u8] {
    let is_significant = |byte: &u8| byte.is_ascii_alphanumeric() || b"~-^.".contains(byte);
    &text[text.iter().position(is_significant).unwrap_or(text.len())..]
}

/// Skips the mark if both texts begin with it. If only one text begins with it, returns that this
/// text comes first.
fn compare_mark(one: &mut &[u8], other: &mut &[u8], mark: u8) -> Option<Ordering> {
    match (one.strip_prefix(&[mark]), other.strip_prefix(&[mark])) {
        (Some(a), Some(b)) => {
            (*one, *other) = (a, b);
            None
        }
        (Some(_), None) => Some(Ordering::Less),
        (None, Some(_)) => Some(Ordering::Greater),
        (None, None) => None,
    }
}

fn take_part<'a>(text: &mut &'a [u8], is_part: fn(&u8) -> bool) -> &'a [u8] {
    let (part, rest) = text.split_at(text.iter().take_while(|byte| is_part(byte)).count());
    *text = rest;
    part
}

/// Compares two numbers of any length. A number comes after an empty text.
fn compare_numbers(one: &[u8], other: &[u8]) -> Ordering {
    let significant = |digits: &[u8]| {
        digits
            .iter()
            .skip_while(|digit| **digit == b'0')
            .copied()
            .collect::<Vec<_>>()
    };
    let (a, b) = (significant(one), significant(other));
    one.is_empty()
        .cmp(&other.is_empty())
        .reverse()
        .then(a.len().cmp(&b.len()))
        .then(a.cmp(&b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error;

    /// The order was compared with the specification's examples and with the output of
    /// systemd-analyze(1) compare-versions.
    #[test]
    fn versions_are_ordered_as_in_the_specification() {
        let ordered = [
            "122.1",
            "123~rc1-1",
            "123",
            "123-a",
            "123-a.1",
            "123-1",
            "123-1.1",
            "123^post1",
            "123.a-1",
            "123.1-1",
            "123a-1",
            "124-1",
        ];
        for (place, one) in ordered.iter().enumerate() {
            for (other_place, other) in ordered.iter().enumerate() {
                assert_eq!(
                    compare(one, other),
                    place.cmp(&other_place),
                    "{one} and {other}"
                );
            }
        }
        for (one, other) in [("1", "01"), ("1_2", "1__2"), ("a+", "a")] {
            assert_eq!(compare(one, other), Ordering::Equal);
        }
        assert_eq!(
            compare("20261125T031800", "20261125T031759"),
            Ordering::Greater
        );
        assert_eq!(
            compare("99999999999999999999", "100000000000000000000"),
            Ordering::Less
        );
    }

    #[test]
    fn file_names_are_parsed() {
        let version = |file: &str| {
            Entry::parse(file, "a").map(|entry| (entry.version, entry.left, entry.done))
        };
        let uncounted = |version: &str| Some((version.to_owned(), u64::MAX, u64::MAX));
        assert_eq!(version("a_1.2"), uncounted("1.2"));
        assert_eq!(
            version(&format!("a_1_{}+3-1", architecture::OF_HOST[0])),
            Some(("1".into(), 3, 1))
        );
        assert_eq!(version("a_1+0"), Some(("1".into(), 0, 0)));
        assert_eq!(version("a_1+x"), uncounted("1+x"));
        assert_eq!(version("a_1_rc"), uncounted("1"));
        for other in ["a", "a_", "b_1", "a_1_s390x", ".a_1"] {
            assert_eq!(version(other), None, "{other}");
        }
    }

    #[test]
    fn entries_of_one_version_are_ordered_by_architecture_and_attempts() {
        let names = [
            "a_9+0",
            "a_1+1-2",
            "a_1+1-1",
            "a_1+2",
            "a_1",
            &format!("a_1_{}", architecture::OF_HOST[0]),
            "a_2+1",
        ];
        let entries: Vec<_> = names
            .iter()
            .map(|file| Entry::parse(file, "a").unwrap())
            .collect();
        for pair in entries.windows(2) {
            assert_eq!(pair[0].compare(&pair[1]), Ordering::Less, "{pair:?}");
        }
    }

    #[test]
    fn newest_version_is_found() {
        let dir = std::env::temp_dir().join(format!("nspawn-versions-{}", std::process::id()));
        for version in ["a_9", "a_10", "a_11+0", ".a_12", "b_13"] {
            fs::create_dir_all(dir.join(version)).unwrap();
        }
        fs::write(dir.join("a_2.raw"), "").unwrap();
        let (found, disk, none) = (
            newest(&dir, "a", ""),
            newest(&dir, "a", ".raw"),
            newest(&dir, "c", ".raw"),
        );
        fs::create_dir(dir.join("a_010")).unwrap();
        let twice = newest(&dir, "a", "").unwrap_err();
        std::os::unix::fs::symlink("nowhere", dir.join("a_99")).unwrap();
        let nowhere = newest(&dir, "a", "").unwrap_err();
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(
            (found.unwrap(), disk.unwrap()),
            (Some(dir.join("a_10")), Some(dir.join("a_2.raw")))
        );
        assert_eq!(none.unwrap(), None);
        assert!(
            error::is_job_fault(&twice) && twice.to_string().contains("same version"),
            "{twice}"
        );
        assert!(
            error::is_job_fault(&nowhere)
                && nowhere.to_string().contains("is a link to a missing file"),
            "{nowhere}"
        );
    }
}
