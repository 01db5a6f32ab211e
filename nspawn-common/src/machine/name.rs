//! Machine names, which are validated when they are created.

use std::ffi::OsStr;
use std::fmt;
use std::fs;

use anyhow::{Context, Result, bail};

/// Maximum length of a host name on Linux (`HOST_NAME_MAX`), in bytes.
pub const MAX_LEN: usize = 64;
const STANDBY_PREFIX: &str = "standby-";

/// The name of a machine. It is a valid host name, and therefore safe as a file name and in a unit
/// name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MachineName(String);

impl MachineName {
    /// Validates a name by the rules of systemd-machined (`machine_name_is_valid` in systemd 252 to
    /// 262).
    ///
    /// # Errors
    /// Names the rule that `raw` breaks, and shows `raw` escaped.
    pub fn new(raw: impl AsRef<OsStr>) -> Result<Self> {
        let raw = raw.as_ref();
        match raw.to_str().map(|name| (name, fault(name))) {
            Some((name, None)) => Ok(Self(name.to_owned())),
            Some((_, Some(fault))) => bail!("can't use {raw:?} as a machine's name: {fault}"),
            None => bail!("can't use {raw:?} as a machine's name: it is not UTF-8"),
        }
    }

    /// Returns a new name for a machine of this image.
    pub fn of_image(image: &str) -> Result<Self> {
        let (stem, unique) = (sanitize(image, 40), random_uuid()?);
        Self::new(format!(
            "{}-{}",
            if stem.is_empty() { "machine" } else { &stem },
            &unique[..8]
        ))
    }

    /// Returns the name of the standby machine that `unique` identifies.
    pub fn for_standby(unique: &str) -> Result<Self> {
        Self::new(format!("{STANDBY_PREFIX}{unique}"))
    }

    /// Returns whether the name is one of a standby machine.
    #[must_use]
    pub fn is_for_standby(&self) -> bool {
        self.0.starts_with(STANDBY_PREFIX)
    }

    /// Returns the name for service `number` of the job in this machine.
    pub fn of_service(&self, number: u8) -> Result<Self> {
        Self::new(format!("{}-{number}", self.0))
    }

    /// Returns the name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MachineName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

fn fault(name: &str) -> Option<&'static str> {
    let label_fault =
        |label: &str| label.is_empty() || label.starts_with('-') || label.ends_with('-');
    if name.is_empty() {
        Some("it is empty")
    } else if name.len() > MAX_LEN {
        Some("it is longer than 64 bytes")
    } else if !name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte))
    {
        Some("only ASCII letters, digits, '-' and '.' are allowed")
    } else if name.split('.').any(label_fault) {
        Some("no part between dots may be empty, or begin or end with '-'")
    } else {
        None
    }
}

/// Returns a random UUID. Its first eight characters are enough for a name suffix.
pub fn random_uuid() -> Result<String> {
    let unique =
        fs::read_to_string("/proc/sys/kernel/random/uuid").context("can't get a random UUID")?;
    Ok(unique.trim_end().to_owned())
}

/// Makes a part of a machine's name from any text. Characters that are not allowed become `-`.
#[must_use]
pub fn sanitize(text: &str, max_len: usize) -> String {
    let dashed: String = text
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(max_len)
        .collect();
    dashed.trim_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn host_names_are_accepted() {
        for name in ["a", "bookworm-1f", "ci-12.example", &"x".repeat(64)] {
            assert_eq!(MachineName::new(name).unwrap().as_str(), name);
        }
    }

    #[test]
    fn names_that_could_escape_or_confuse_are_refused() {
        let long = "x".repeat(65);
        for name in [
            "", ".", "..", "../x", "a/b", "a\nb", ".a", "-a", "a-", "a..b", "a b", "a_b", "ä",
            &long,
        ] {
            assert!(MachineName::new(name).is_err(), "{name:?}");
        }
        assert!(MachineName::new(OsStr::from_bytes(b"a\xff")).is_err());
    }

    #[test]
    fn sanitized_text_is_a_part_of_a_name() {
        assert_eq!(sanitize("debian_12/slim.", 20), "debian-12-slim");
        assert_eq!(sanitize("...", 20), "");
    }
}
