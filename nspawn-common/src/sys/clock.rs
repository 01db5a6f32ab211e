//! The clocks that bounds are measured by. None of them is the wall clock alone: that jumps, when a board without a
//! battery hears of the time, and when a virtual machine is restored from a snapshot.
//!
//! | clock | in sleep | used for | because |
//! | --- | --- | --- | --- |
//! | `CLOCK_MONOTONIC` | stands still | waits, and the lifetime of machines | no process works while the host sleeps; systemd's `RuntimeMaxSec=` and GitLab Runner's time limits use it as well |
//! | `CLOCK_BOOTTIME` | goes on | the time that a machine is kept | a person waits for the end of that |
//! | `CLOCK_REALTIME` | jumps after it | journalctl, caches | both outlive a boot; [`Moment`] and `nspawn-cleanup` each allow for jumps |
//!
//! A restored snapshot goes on with the first two as they were, and so do processes in it. After a reboot both begin
//! anew, and /run, where they are written down, is empty.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

/// Returns the time that the host has been awake since its boot.
#[must_use]
pub fn awake() -> Duration {
    read(ClockId::CLOCK_MONOTONIC)
}

/// Returns the time since the host's boot, asleep or awake.
#[must_use]
pub fn since_boot() -> Duration {
    read(ClockId::CLOCK_BOOTTIME)
}

// The kernel has each of these clocks (clock_gettime(2)), so this can't fail.
fn read(clock: ClockId) -> Duration {
    clock_gettime(clock).map(Duration::from).unwrap_or_default()
}

/// A point in time from which on the journal is asked.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    wall: SystemTime,
    awake: Duration,
}

impl Moment {
    /// Returns the present moment.
    #[must_use]
    pub fn now() -> Self {
        Self {
            wall: SystemTime::now(),
            awake: awake(),
        }
    }

    /// Returns the moment that the wall clock showed as `wall` when the host had been `awake` for this time.
    #[must_use]
    pub fn new(wall: SystemTime, awake: Duration) -> Self {
        Self { wall, awake }
    }

    /// Returns the option of journalctl for entries after the moment, to the microsecond: another machine of the same
    /// name may have just ended.
    #[must_use]
    pub fn since(&self) -> String {
        let passed = awake().saturating_sub(self.awake);
        let time = earliest(self.wall, SystemTime::now(), passed)
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        format!("--since=@{:.6}", time.as_secs_f64())
    }
}

// Entries of before and after a jump of the wall clock carry times of the clock as it was then. Where the clock was set
// back, the moment is later by it than what came after the moment.
fn earliest(wall: SystemTime, now: SystemTime, passed: Duration) -> SystemTime {
    now.checked_sub(passed)
        .map_or(UNIX_EPOCH, |moment| moment.min(wall))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_of_the_wall_clock_hides_no_entry() {
        let at = |hours: u64| UNIX_EPOCH + Duration::from_secs(hours * 3600);
        let hour = Duration::from_secs(3600);
        for (wall, now, expected) in [
            (at(10), at(11), at(10)),
            (at(10), at(7), at(6)),
            (at(10), at(90), at(10)),
        ] {
            assert_eq!(earliest(wall, now, hour), expected, "{wall:?} {now:?}");
        }
        assert_eq!(earliest(at(1), UNIX_EPOCH, hour), UNIX_EPOCH - hour);
    }

    #[test]
    fn clocks_go_on() {
        let (moment, boot) = (Moment::now(), since_boot());
        assert!(awake() >= moment.awake && since_boot() >= boot && boot >= moment.awake);
        assert!(moment.since().starts_with("--since=@"));
    }
}
