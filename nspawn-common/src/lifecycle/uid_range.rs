//! User namespaces: the host's user ids that a machine's users are.

use std::fmt;
use std::fs;

use anyhow::{Context, Result, bail};

use crate::lifecycle::lock::Lock;
use crate::lifecycle::status;
use crate::machine::paths::MachinePaths;

pub use crate::sys::idmapped_mount::RANGE;
/// The first of the ranges that machines are given. What lies from here to [`LAST`] belongs to nobody:
/// systemd-nspawn picks below 0x7000_0000 (systemd's UIDS-GIDS.md), sssd maps below 2 000 200 000
/// (sssd-ad(5), `ldap_idmap_range_max`), and systemd's foreign users come after.
const FIRST: u32 = 0x7739_0000;
const LAST: u32 = 0x7ffd_0000;

/// `--private-users=`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PrivateUsers {
    /// A range that nobody else has.
    #[default]
    Pick,
    /// The host's own users, its root above all.
    No,
    /// The range from here on.
    Base(u32),
}

impl PrivateUsers {
    /// Reads the option's value.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> Result<Self> {
        match text {
            "pick" | "yes" => Ok(Self::Pick),
            "no" => Ok(Self::No),
            _ => match text.parse() {
                Ok(base) if base >= RANGE && base % RANGE == 0 && base < u32::MAX - RANGE => {
                    Ok(Self::Base(base))
                }
                Ok(_) => bail!(
                    "{text} is no multiple of {RANGE} that a range of {RANGE} users can begin with"
                ),
                Err(_) => bail!("{text:?} is neither pick nor no nor a number"),
            },
        }
    }
}

impl fmt::Display for PrivateUsers {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pick => out.write_str("pick"),
            Self::No => out.write_str("no"),
            Self::Base(base) => base.fmt(out),
        }
    }
}

/// Takes a range of user ids for the machine, until its state is removed. Returns the first of them; `None`
/// for the host's own.
///
/// # Errors
/// Another machine, or a user of the host by subuid(5), has it; none is free.
pub fn take(paths: &MachinePaths, asked: PrivateUsers) -> Result<Option<u32>> {
    if asked == PrivateUsers::No {
        return Ok(None);
    }
    let _lock = Lock::of_users()?;
    let mut taken = subordinate_ranges();
    // What an earlier start of it has written belongs to the users that it had then.
    let earlier = fs::read_to_string(paths.users_file())
        .ok()
        .and_then(|base| base.parse().ok());
    let asked = earlier.map_or(asked, PrivateUsers::Base);
    for name in status::all()? {
        taken.extend(range_of(&MachinePaths::new(&name)).filter(|_| name != *paths.name()));
    }
    let base = choose(asked, &taken)?;
    let path = paths.users_file();
    fs::write(&path, base.to_string())
        .with_context(|| format!("can't write {}", path.display()))?;
    Ok(Some(base))
}

fn range_of(paths: &MachinePaths) -> Option<(u64, u64)> {
    let base: u32 = fs::read_to_string(paths.users_file()).ok()?.parse().ok()?;
    Some((base.into(), RANGE.into()))
}

fn choose(asked: PrivateUsers, taken: &[(u64, u64)]) -> Result<u32> {
    let is_free = |base: &u32| {
        let (base, end) = (u64::from(*base), u64::from(*base) + u64::from(RANGE));
        taken
            .iter()
            .all(|(first, count)| end <= *first || first.saturating_add(*count) <= base)
    };
    match asked {
        PrivateUsers::Base(base) if is_free(&base) => Ok(base),
        PrivateUsers::Base(base) => {
            bail!(
                "--private-users={base}: another machine, or /etc/subuid or /etc/subgid, has users in that range"
            )
        }
        _ => (FIRST..=LAST)
            .step_by(RANGE as usize)
            .find(is_free)
            .context("no range of users is free on this host"),
    }
}

fn subordinate_ranges() -> Vec<(u64, u64)> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    [read("/etc/subuid"), read("/etc/subgid")]
        .iter()
        .flat_map(|text| text.lines().filter_map(subordinate_range))
        .collect()
}

// user:first:count
fn subordinate_range(line: &str) -> Option<(u64, u64)> {
    let mut fields = line.split(':').skip(1).map(str::parse);
    Some((fields.next()?.ok()?, fields.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_asked_for() {
        for (text, users) in [
            ("pick", PrivateUsers::Pick),
            ("no", PrivateUsers::No),
            ("655360", PrivateUsers::Base(655_360)),
        ] {
            assert_eq!(PrivateUsers::parse(text).unwrap(), users);
            assert_eq!(users.to_string(), text);
        }
        for bad in [
            "",
            "0",
            "1",
            "65537",
            "4294901760",
            "4294967296",
            "-1",
            "maybe",
        ] {
            assert!(PrivateUsers::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ranges_that_others_have_are_not_taken() {
        let first = u64::from(FIRST);
        let next = |taken: &[(u64, u64)]| choose(PrivateUsers::Pick, taken).unwrap();
        assert_eq!(next(&[]), FIRST);
        assert_eq!(next(&[(first + 65535, 1)]), FIRST + RANGE);
        assert_eq!(next(&[(first - 10, 10), (first + 65536, 65536)]), FIRST);
        assert_eq!(
            next(&[(0, first + 1), (first + 3 * 65536, u64::MAX)]),
            FIRST + RANGE
        );
        assert!(choose(PrivateUsers::Pick, &[(0, u64::MAX)]).is_err());
        assert!(choose(PrivateUsers::Base(655_360), &[(655_361, 1)]).is_err());
        assert_eq!(
            choose(PrivateUsers::Base(655_360), &[(720_896, 1)]).unwrap(),
            655_360
        );
    }

    #[test]
    fn subordinate_users_are_read() {
        assert_eq!(
            subordinate_range("ann:100000:65536"),
            Some((100_000, 65536))
        );
        for bad in ["", "ann", "ann:x:1", "ann:1"] {
            assert_eq!(subordinate_range(bad), None, "{bad}");
        }
    }
}
