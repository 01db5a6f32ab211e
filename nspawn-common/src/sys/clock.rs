//! Clocks for time limits and lifetimes.
//!
//! The wall clock alone serves none of these purposes, because it jumps: when a board without a
//! battery gets the time, and when a virtual machine is restored from a snapshot.
//!
//! | clock | while the host sleeps | used for | reason |
//! | --- | --- | --- | --- |
//! | `CLOCK_MONOTONIC` | stops | time limits, lifetime of machines | no process works while the host sleeps; systemd's `RuntimeMaxSec=` and GitLab Runner's time limits use it too |
//! | `CLOCK_BOOTTIME` | continues | time for which a machine is kept | a person waits for its end |
//! | `CLOCK_REALTIME` | jumps afterwards | journalctl, caches | both outlive a boot; [`Moment`] and `nspawn-cleanup` each allow for jumps |
//!
//! The first two clocks continue in a restored snapshot, like the processes in it. A reboot
//! restarts both, and empties /run, where their times are recorded.

use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

/// Returns the time for which the host has been awake since its boot.
pub fn awake() -> Duration {
    read(ClockId::CLOCK_MONOTONIC)
}

/// Returns the time since the host's boot, including sleep.
pub fn since_boot() -> Duration {
    read(ClockId::CLOCK_BOOTTIME)
}

// Each kernel has these clocks (clock_gettime(2)), so reading them can't fail.
fn read(clock: ClockId) -> Duration {
    clock_gettime(clock).map(Duration::from).unwrap_or_default()
}

/// Waits until a condition is met of which no event tells, and returns whether that was in time.
pub fn poll_until(deadline: Instant, pause: Duration, mut is_met: impl FnMut() -> bool) -> bool {
    while !is_met() {
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(pause);
    }
    true
}

/// Point in time after which entries of the journal are read.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    wall: SystemTime,
    awake: Duration,
}

impl Moment {
    /// Returns the present moment.
    pub fn now() -> Self {
        Self {
            wall: SystemTime::now(),
            awake: awake(),
        }
    }

    /// Returns the moment with this wall clock and this time for which the host has been [`awake`].
    pub fn new(wall: SystemTime, awake: Duration) -> Self {
        Self { wall, awake }
    }

    /// Returns the option of journalctl for entries after this moment.
    ///
    /// It is precise to the microsecond: another machine of the same name may have ended just
    /// before.
    pub fn since_option(&self) -> String {
        let passed = awake().saturating_sub(self.awake);
        let time = earliest(self.wall, SystemTime::now(), passed)
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        format!("--since=@{:.6}", time.as_secs_f64())
    }
}

// Returns the earlier of `wall` and the moment that lies `passed` before `now`.
//
// Entries before and after a jump of the wall clock have the time that the clock had then. If the
// clock was set back, entries after the moment may have an earlier time than `wall`.
fn earliest(wall: SystemTime, now: SystemTime, passed: Duration) -> SystemTime {
    now.checked_sub(passed)
        .map_or(UNIX_EPOCH, |moment| moment.min(wall))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn journal_entries_are_found_after_a_jump_of_the_wall_clock() {
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
    fn clocks_advance() {
        let (moment, boot) = (Moment::now(), since_boot());
        assert!(awake() >= moment.awake && since_boot() >= boot && boot >= moment.awake);
        assert!(moment.since_option().starts_with("--since=@"));
    }
}
