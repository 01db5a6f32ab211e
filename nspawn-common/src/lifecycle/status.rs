//! Status of a machine in its life cycle.
//!
//! Mark files in the state directory record the status. They are created last and removed first, so
//! that a machine whose creation or removal was interrupted has none of them.

use crate::lifecycle::retention;
use crate::machine::paths::MachinePaths;

/// Status of a machine, as its mark files record it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The machine is in a standby pool, and can be taken over.
    Standby,
    /// The machine is kept for inspection, and the time for that has not passed.
    Kept,
    /// The machine's `nspawn-prepare` has finished, and its `nspawn-cleanup` has not begun.
    Ready,
    /// The machine is being created or removed, or its creation or removal was interrupted. Its
    /// lock shows which.
    Incomplete,
}

impl Status {
    /// Returns the status of the machine.
    #[must_use]
    pub fn of(paths: &MachinePaths) -> Self {
        if paths.fingerprint_file().exists() {
            Self::Standby
        } else if retention::is_kept(paths) {
            Self::Kept
        } else if paths.ready_mark().exists() {
            Self::Ready
        } else {
            Self::Incomplete
        }
    }
}
