//! Stale machines, which `nspawn-cleanup --stale` removes, and kept machines, which it spares.

mod kept;
mod stale;

use nspawn_tests::call;

/// Lists what `nspawn-cleanup --stale` would remove.
fn stale() -> Vec<String> {
    let list = call("nspawn-cleanup", ["--stale", "--dry-run"])
        .expect(0)
        .out();
    list.lines().map(str::to_owned).collect()
}
