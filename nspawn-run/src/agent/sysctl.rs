//! Kernel settings of the machine's own namespaces.
//!
//! systemd-nspawn mounts /proc/sys read-only except for the machine's own network.

use std::fs;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::unistd::{AccessFlags, access};
use nspawn_common::sys::fs::bind_mount;

/// Groups that may create ICMP sockets (icmp(7)) in this network namespace, by which ping(8) works
/// for users without privileges.
const PING_GROUPS: &str = "/proc/sys/net/ipv4/ping_group_range";
/// Settings of the user namespace of the program that opens them.
const USER_SETTINGS: &str = "/proc/sys/user";
/// The setting whose access shows whether they are writable.
const USER_SETTING: &str = "/proc/sys/user/max_user_namespaces";

/// Permits ICMP sockets to all groups of the machine, as systemd does on hosts.
///
/// systemd's own setting does not fit in a machine: it contains groups that the machine lacks. In
/// the host's network the file is read-only, and stays as it is. So does that of a machine with all
/// groups of the host, whose network may be one that the administrator has configured.
pub fn permit_ping() {
    let map = fs::read_to_string("/proc/self/gid_map").unwrap_or_default();
    if let Some(last) = last_id(&map) {
        // Kernels without IPv4 have no such file.
        let _ = fs::write(PING_GROUPS, format!("0 {last}"));
    }
}

/// Makes the settings of the user namespace writable, which root in the machine could do itself.
///
/// Sandboxes write to them in namespaces of their own: `bwrap --disable-userns` does so, and Flatpak
/// by it. Without a user namespace, they would be those of the host. A failure leaves them read-only.
pub fn open_user_settings() {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    if last_id(&map).is_some() && access(USER_SETTING, AccessFlags::W_OK) == Err(Errno::EROFS) {
        let _ = mount_user_settings();
    }
}

fn mount_user_settings() -> nix::Result<()> {
    let place = Path::new(USER_SETTINGS);
    bind_mount(place, place)?;
    let kept = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let writable = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | kept;
    mount(None::<&str>, place, None::<&str>, writable, None::<&str>)
}

/// Returns the last ID of a map from 0 on without a gap, or `None` if the map has all IDs of the
/// host.
fn last_id(map: &str) -> Option<u32> {
    let mut ranges: Vec<(u32, u32)> = map.lines().filter_map(parse_range).collect();
    ranges.sort_unstable();
    let mut count = 0;
    for (first, length) in ranges {
        if first == count {
            count = first.checked_add(length)?;
        }
    }
    count.checked_sub(1).filter(|_| count < u32::MAX)
}

// The format is the first number inside, the first number outside, and the length.
fn parse_range(line: &str) -> Option<(u32, u32)> {
    let mut numbers = line.split_whitespace().map(str::parse);
    let first = numbers.next()?.ok()?;
    let length = numbers.nth(1)?.ok()?;
    Some((first, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_id_is_that_of_the_map_without_a_gap() {
        for (map, last) in [
            ("         0 2000224256      65536\n", Some(65535)),
            ("1 7 9\n0 100 1\n", Some(9)),
            ("0 100 5\n100 200 5\n", Some(4)),
            ("5 5 5\n", None),
            ("         0          0 4294967295\n", None),
            ("", None),
        ] {
            assert_eq!(last_id(map), last, "{map}");
        }
    }
}
