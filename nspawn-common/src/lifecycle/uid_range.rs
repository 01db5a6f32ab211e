//! Allocates UID ranges of the host for the machines' user namespaces.

use std::fs;
use std::ops::RangeInclusive;

use anyhow::{Context, Result, bail};

use crate::config::private_users::{IdRange, PICKED_SIZE, PrivateUsers, format_range, parse_range};
use crate::lifecycle::list;
use crate::lifecycle::lock;
use crate::lifecycle::lock::Resource;
use crate::machine::paths::MachinePaths;

/// First IDs of the UID ranges for machines, from the first one to the last one.
///
/// No other program uses these IDs: systemd-nspawn picks below 0x7000_0000 (systemd's UIDS-GIDS.md),
/// sssd maps below 2 000 200 000 (sssd-ad(5), `ldap_idmap_range_max`), and systemd's foreign UID
/// range is 0x7ffe_0000 to 0x7ffe_ffff. IDs from 0x8000_0000 on come last, because some programs of
/// the host print them as negative numbers. The last 2^20 IDs have special values among them.
const BASES: [RangeInclusive<u32>; 2] = [0x7740_0000..=0x7fe0_0000, 0x8000_0000..=0xffe0_0000];

/// Allocates a UID range for the machine, until its state is removed. Returns `None` for the IDs of
/// the host.
///
/// # Errors
/// Fails if another machine, or a user of the host by subuid(5), has the requested range, or if no
/// range is free.
pub fn allocate(paths: &MachinePaths, requested: PrivateUsers) -> Result<Option<IdRange>> {
    if requested == PrivateUsers::No {
        return Ok(None);
    }
    let _lock = lock::host(Resource::UidRanges, lock::UID_RANGES_LIMIT)?;
    let mut taken = subordinate_ranges();
    // Files that the machine wrote after an earlier start belong to the range that it had at that
    // time.
    let requested = of(paths).map_or(requested, PrivateUsers::Range);
    for name in list::all()?.iter().filter(|name| *name != paths.name()) {
        taken.extend(of(&MachinePaths::named(name)).map(limits));
    }
    let ids = choose(requested, &taken)?;
    let path = paths.uid_range_file();
    fs::write(&path, format_range(ids))
        .with_context(|| format!("can't write {}", path.display()))?;
    Ok(Some(ids))
}

/// Returns the UIDs of the machine, unless it has those of the host.
#[must_use]
pub fn of(paths: &MachinePaths) -> Option<IdRange> {
    let text = fs::read_to_string(paths.uid_range_file()).ok()?;
    parse_range(&text).ok()
}

/// Returns the first ID and the number of IDs.
fn limits(ids: IdRange) -> (u64, u64) {
    (ids.base.into(), ids.size.into())
}

fn choose(requested: PrivateUsers, taken: &[(u64, u64)]) -> Result<IdRange> {
    let is_free = |ids: &IdRange| {
        let (base, size) = limits(*ids);
        taken
            .iter()
            .all(|(first, count)| base + size <= *first || first.saturating_add(*count) <= base)
    };
    match requested {
        PrivateUsers::Range(ids) if is_free(&ids) => Ok(ids),
        PrivateUsers::Range(_) => {
            bail!(
                "can't use --private-users={requested}: another machine, /etc/subuid or /etc/subgid has IDs in that range; \
                 choose another one"
            )
        }
        _ => picked_ranges()
            .find(is_free)
            .context("no UID range is free on this host"),
    }
}

fn picked_ranges() -> impl Iterator<Item = IdRange> {
    let size = PICKED_SIZE;
    let bases = BASES
        .into_iter()
        .flat_map(move |bases| bases.step_by(size as usize));
    bases.map(move |base| IdRange { base, size })
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
        let [low, high] = BASES.map(|bases| u64::from(*bases.start()));
        let size = u64::from(PICKED_SIZE);
        let next = |taken: &[(u64, u64)]| limits(choose(PrivateUsers::Pick, taken).unwrap()).0;
        assert_eq!(next(&[]), low);
        assert_eq!(next(&[(low + size - 1, 1)]), low + size);
        assert_eq!(next(&[(low - 10, 10), (low + size, 65536)]), low);
        let all_but_one = [(0, low + 1), (low + 3 * size, u64::MAX)];
        assert_eq!(next(&all_but_one), low + size);
        assert_eq!(next(&[(0, high - size)]), high);
        assert!(choose(PrivateUsers::Pick, &[(0, u64::MAX)]).is_err());
    }

    #[test]
    fn fixed_range_is_used_if_it_is_free() {
        let ids = parse_range("655360").unwrap();
        assert!(choose(PrivateUsers::Range(ids), &[(655_361, 1)]).is_err());
        let chosen = choose(PrivateUsers::Range(ids), &[(720_896, 1)]);
        assert_eq!(chosen.unwrap(), ids);
    }

    #[test]
    fn a_thousand_machines_have_ranges_outside_of_systemds_own() {
        assert!(picked_ranges().count() > 1000);
        for ids in picked_ranges() {
            let last = ids.base.checked_add(ids.size).unwrap() - 1;
            assert_eq!(ids.base % ids.size, 0);
            assert!(last < 0x7ffe_0000 || ids.base > 0x7ffe_ffff, "{ids:?}");
        }
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
