//! Versioned images: of a directory `NAME.v/` of trees, or `NAME.raw.v/` of disk images, the newest version counts
//! (systemd.v(7), since systemd 256).

use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::exit::JobError;

/// The architectures as systemd calls them (ConditionArchitecture= in systemd.unit(5)), and ours.
const ARCHITECTURES: [&str; 8] = ["x86-64", "x86", "arm64", "arm", "riscv64", "ppc64-le", "s390x", "loongarch64"];
const OURS: &str = match std::env::consts::ARCH.as_bytes() {
    b"x86_64" => "x86-64",
    b"aarch64" => "arm64",
    _ => std::env::consts::ARCH,
};

/// The newest version of the image `name` in `directory`: of the directories `NAME_VERSION`, or of the files
/// `NAME_VERSION.raw` where the `suffix` says so. Behind the version may be an architecture and the boot counter
/// `+LEFT[-DONE]`.
///
/// # Errors
/// There is none, or two of the same version.
pub fn newest(directory: &Path, name: &str, suffix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(directory).with_context(|| format!("can't read {}", directory.display()))?;
    let mut newest: Option<(Entry, PathBuf)> = None;
    let mut twin = None;
    for path in entries.flatten().map(|entry| entry.path()) {
        let is_of_kind = if suffix.is_empty() { path.is_dir() } else { path.is_file() };
        let entry = path.file_name().and_then(|file| Entry::parse(file.to_str()?.strip_suffix(suffix)?, name));
        let Some(entry) = entry.filter(|_| is_of_kind) else { continue };
        match newest.as_ref().map_or(Ordering::Greater, |(best, _)| entry.compare(best)) {
            Ordering::Greater => (newest, twin) = (Some((entry, path)), None),
            Ordering::Equal => twin = Some(path),
            Ordering::Less => {}
        }
    }
    match (newest, twin) {
        (Some((_, path)), None) => Ok(path),
        (Some((_, path)), Some(twin)) => bail!(JobError(format!(
            "the image {name} has one version twice, {} and {}; remove one",
            path.display(),
            twin.display()
        ))),
        (None, _) => bail!(JobError(format!(
            "the image {name} has no version: nothing in {} is called {name}_VERSION{suffix}",
            directory.display()
        ))),
    }
}

#[derive(Debug)]
struct Entry {
    version: String,
    /// Whether it was tried too often without success (systemd.v(7)): it comes after all others.
    is_bad: bool,
}

impl Entry {
    fn parse(file: &str, name: &str) -> Option<Self> {
        let rest = file.strip_prefix(name)?.strip_prefix('_')?;
        let (rest, is_bad) = match rest.rsplit_once('+') {
            Some((version, counter)) if is_counter(counter) => {
                (version, counter.split('-').next().is_some_and(|left| left.bytes().all(|digit| digit == b'0')))
            }
            _ => (rest, false),
        };
        let version = match rest.rsplit_once('_') {
            Some((version, architecture)) if architecture == OURS => version,
            Some((_, architecture)) if ARCHITECTURES.contains(&architecture) => return None,
            _ => rest,
        };
        (!version.is_empty()).then(|| Self { version: version.to_owned(), is_bad })
    }

    fn compare(&self, other: &Self) -> Ordering {
        other.is_bad.cmp(&self.is_bad).then_with(|| compare(&self.version, &other.version))
    }
}

fn is_counter(text: &str) -> bool {
    text.split('-').count() <= 2
        && text.split('-').all(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Compares versions by the UAPI group's Version Format Specification, as systemd does.
#[must_use]
pub fn compare(one: &str, other: &str) -> Ordering {
    let (mut one, mut other) = (one.as_bytes(), other.as_bytes());
    loop {
        (one, other) = (skip_others(one), skip_others(other));
        // A tilde comes before the end, which comes before all else.
        if let Some(order) = step(&mut one, &mut other, b'~') {
            return order;
        }
        if one.is_empty() || other.is_empty() {
            return one.len().cmp(&other.len());
        }
        if let Some(order) = [b'-', b'^', b'.'].iter().find_map(|mark| step(&mut one, &mut other, *mark)) {
            return order;
        }
        let is_number = one.first().is_some_and(u8::is_ascii_digit) || other.first().is_some_and(u8::is_ascii_digit);
        let is_part = if is_number { u8::is_ascii_digit } else { u8::is_ascii_alphabetic };
        let (a, b) = (take(&mut one, is_part), take(&mut other, is_part));
        let order = if is_number { compare_numbers(a, b) } else { a.cmp(b) };
        if order != Ordering::Equal {
            return order;
        }
    }
}

fn skip_others(text: &[u8]) -> &[u8] {
    let counts = |byte: &u8| byte.is_ascii_alphanumeric() || b"~-^.".contains(byte);
    &text[text.iter().position(counts).unwrap_or(text.len())..]
}

// Whichever alone has the mark comes first. Both having it, it is skipped.
fn step(one: &mut &[u8], other: &mut &[u8], mark: u8) -> Option<Ordering> {
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

fn take<'a>(text: &mut &'a [u8], is_part: fn(&u8) -> bool) -> &'a [u8] {
    let (part, rest) = text.split_at(text.iter().take_while(|byte| is_part(byte)).count());
    *text = rest;
    part
}

// A number comes after no number.
fn compare_numbers(one: &[u8], other: &[u8]) -> Ordering {
    let significant = |digits: &[u8]| digits.iter().skip_while(|digit| **digit == b'0').copied().collect::<Vec<_>>();
    let (a, b) = (significant(one), significant(other));
    one.is_empty().cmp(&other.is_empty()).reverse().then(a.len().cmp(&b.len())).then(a.cmp(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The specification's own examples, and what systemd-analyze(1) compare-versions says.
    #[test]
    fn versions_are_ordered() {
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
                assert_eq!(compare(one, other), place.cmp(&other_place), "{one} and {other}");
            }
        }
        for (one, other) in [("1", "01"), ("1_2", "1__2"), ("a+", "a")] {
            assert_eq!(compare(one, other), Ordering::Equal);
        }
        assert_eq!(compare("20261125T031800", "20261125T031759"), Ordering::Greater);
        assert_eq!(compare("99999999999999999999", "100000000000000000000"), Ordering::Less);
    }

    #[test]
    fn names_hold_versions() {
        let version = |file: &str| Entry::parse(file, "a").map(|entry| (entry.version, entry.is_bad));
        assert_eq!(version("a_1.2"), Some(("1.2".into(), false)));
        assert_eq!(version(&format!("a_1_{OURS}+3-1")), Some(("1".into(), false)));
        assert_eq!(version("a_1+0-3"), Some(("1".into(), true)));
        assert_eq!(version("a_1+x"), Some(("1+x".into(), false)));
        for other in ["a", "a_", "b_1", "a_1_s390x", ".a_1"] {
            assert_eq!(version(other), None, "{other}");
        }
    }

    #[test]
    fn the_newest_is_found() {
        let dir = std::env::temp_dir().join(format!("nspawn-versions-{}", std::process::id()));
        for version in ["a_9", "a_10", "a_11+0", ".a_12", "b_13"] {
            fs::create_dir_all(dir.join(version)).unwrap();
        }
        fs::write(dir.join("a_2.raw"), "").unwrap();
        let (found, disk) = (newest(&dir, "a", ""), newest(&dir, "a", ".raw"));
        fs::create_dir(dir.join("a_010")).unwrap();
        let twice = newest(&dir, "a", "").unwrap_err();
        let none = newest(&dir, "c", ".raw").unwrap_err();
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!((found.unwrap(), disk.unwrap()), (dir.join("a_10"), dir.join("a_2.raw")));
        assert!(twice.is::<JobError>() && twice.to_string().contains("twice"), "{twice}");
        assert!(none.to_string().contains("no version"), "{none}");
    }
}
