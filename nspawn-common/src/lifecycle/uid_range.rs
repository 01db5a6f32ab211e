//! Allocates UID ranges of the host for the machines' user namespaces.

use std::fs;
use std::ops::Range;

use anyhow::{Context, Result, bail};

use crate::config::private_users::{PrivateUsers, RANGE_SIZE};
use crate::lifecycle::list;
use crate::lifecycle::lock;
use crate::lifecycle::lock::Resource;
use crate::machine::paths::MachinePaths;

/// First ID of the first UID range for machines. No other program uses the IDs from it to the last
/// range: systemd-nspawn picks below 0x7000_0000 (systemd's UIDS-GIDS.md), sssd maps below 2 000
/// 200 000 (sssd-ad(5), `ldap_idmap_range_max`), and systemd's foreign UID range comes after them.
const FIRST: u32 = 0x7739_0000;
/// First ID of the last UID range for machines.
const LAST: u32 = 0x7ffd_0000;

/// Allocates a UID range for the machine, until its state is removed. Returns the first ID of the
/// range, or `None` for the IDs of the host.
///
/// # Errors
/// Fails if another machine, or a user of the host by subuid(5), has the requested range, or if no
/// range is free.
pub fn allocate(paths: &MachinePaths, requested: PrivateUsers) -> Result<Option<u32>> {
    if requested == PrivateUsers::No {
        return Ok(None);
    }
    let _lock = lock::host(Resource::UidRanges, lock::UID_RANGES_LIMIT)?;
    let mut taken = subordinate_ranges();
    // Files that the machine wrote after an earlier start belong to the range that it had at that
    // time.
    let earlier = fs::read_to_string(paths.uid_range_file())
        .ok()
        .and_then(|base| base.parse().ok());
    let requested = earlier.map_or(requested, PrivateUsers::Base);
    for name in list::all()? {
        taken.extend(range_of(&MachinePaths::named(&name)).filter(|_| name != *paths.name()));
    }
    let base = choose(requested, &taken)?;
    let path = paths.uid_range_file();
    fs::write(&path, base.to_string())
        .with_context(|| format!("can't write {}", path.display()))?;
    Ok(Some(base))
}

/// Returns the UIDs of the machine, unless it has those of the host.
#[must_use]
pub fn of(paths: &MachinePaths) -> Option<Range<u32>> {
    let base: u32 = fs::read_to_string(paths.uid_range_file())
        .ok()?
        .parse()
        .ok()?;
    Some(base..base.checked_add(RANGE_SIZE)?)
}

fn range_of(paths: &MachinePaths) -> Option<(u64, u64)> {
    let range = of(paths)?;
    Some((range.start.into(), RANGE_SIZE.into()))
}

fn choose(requested: PrivateUsers, taken: &[(u64, u64)]) -> Result<u32> {
    let is_free = |base: &u32| {
        let (base, end) = (u64::from(*base), u64::from(*base) + u64::from(RANGE_SIZE));
        taken
            .iter()
            .all(|(first, count)| end <= *first || first.saturating_add(*count) <= base)
    };
    match requested {
        PrivateUsers::Base(base) if is_free(&base) => Ok(base),
        PrivateUsers::Base(base) => {
            bail!(
                "can't use --private-users={base}: another machine, /etc/subuid or /etc/subgid has IDs in that range; \
                 choose another one"
            )
        }
        _ => (FIRST..=LAST)
            .step_by(RANGE_SIZE as usize)
            .find(is_free)
            .context("no UID range is free on this host"),
    }
}

fn subordinate_ranges() -> Vec<(u64, u64)> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    [read("/etc/subuid"), read("/etc/subgid")]
        .iter()
        .flat_map(|text| text.lines().filter_map(subordinate_range))
        .collect()
}

/// Parses a line of subuid(5): user, first ID and number of IDs.
fn subordinate_range(line: &str) -> Option<(u64, u64)> {
    let mut fields = line.split(':').skip(1).map(str::parse);
    Some((fields.next()?.ok()?, fields.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_in_use_are_skipped() {
        let first = u64::from(FIRST);
        let next = |taken: &[(u64, u64)]| choose(PrivateUsers::Pick, taken).unwrap();
        assert_eq!(next(&[]), FIRST);
        assert_eq!(next(&[(first + 65535, 1)]), FIRST + RANGE_SIZE);
        assert_eq!(next(&[(first - 10, 10), (first + 65536, 65536)]), FIRST);
        assert_eq!(
            next(&[(0, first + 1), (first + 3 * 65536, u64::MAX)]),
            FIRST + RANGE_SIZE
        );
        assert!(choose(PrivateUsers::Pick, &[(0, u64::MAX)]).is_err());
        assert!(choose(PrivateUsers::Base(655_360), &[(655_361, 1)]).is_err());
        assert_eq!(
            choose(PrivateUsers::Base(655_360), &[(720_896, 1)]).unwrap(),
            655_360
        );
    }

    #[test]
    fn subordinate_ranges_are_parsed() {
        assert_eq!(
            subordinate_range("ann:100000:65536"),
            Some((100_000, 65536))
        );
        for bad in ["", "ann", "ann:x:1", "ann:1"] {
            assert_eq!(subordinate_range(bad), None, "{bad}");
        }
    }
}
