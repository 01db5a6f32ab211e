//! Upgrades of systemd while machines run, stand by, are created and are removed.

use std::fs;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nspawn_tests::{Done, Machine, call, image, left_of, remove_stale, sh, wait_until};

/// Time limit for a refill to remove a machine.
const REFILL_LIMIT: Duration = Duration::from_secs(30);

/// A loop of the steps in the maintainer scripts of Debian's systemd, which ends on drop.
///
/// `reset-failed` keeps the start rate limit of the services from ending the loop.
struct Upgrades(Option<JoinHandle<Done>>);

impl Upgrades {
    const FLAG: &str = "/run/e2e-upgrades";

    fn begin() -> Self {
        fs::write(Self::FLAG, "").unwrap();
        let services = "systemd-machined systemd-logind";
        let line = format!(
            "while test -e {}; do systemctl daemon-reexec; systemctl reset-failed {services}; \
             systemctl restart {services}; systemctl daemon-reload; sleep 1; done",
            Self::FLAG
        );
        Self(Some(thread::spawn(move || sh(&line))))
    }
}

impl Drop for Upgrades {
    fn drop(&mut self) {
        let _ = fs::remove_file(Self::FLAG);
        let _ = self.0.take().map(JoinHandle::join);
    }
}

fn pool(count: &str) {
    call(
        "nspawn-prepare",
        [count, "--init=stub", "--network=none", &image()],
    )
    .expect(0);
}

#[test]
fn machines_survive_upgrades_of_systemd() {
    let before = Machine::new();
    let upgrades = Upgrades::begin();
    thread::scope(|scope| {
        let running = scope.spawn(|| before.sh("sleep 15; exit 7"));
        pool("--standby=2");
        for options in [
            &["--init=systemd"][..],
            &["--init=stub"],
            &["--init=none"],
            &["--init=stub", "--network=none"],
            &["--init=stub", "--network=none"],
        ] {
            let machine = Machine::with(options);
            assert_eq!(
                machine.sh("echo done; sleep 0.5; exit 7").expect(7).out(),
                "done\n",
                "{options:?}"
            );
            call("nspawn-cleanup", [&machine.name]).expect(0);
            assert_eq!(left_of(&machine.name), "", "{options:?}");
        }
        remove_stale();
        running.join().unwrap().expect(7);
    });
    pool("--standby=0");
    drop(upgrades);
    before.run(["true"]).expect(0);
    call("nspawn-cleanup", [&before.name]).expect(0);
    assert_eq!(left_of(&before.name), "");
    // A refill in the background removes a machine whose creation an upgrade has disturbed.
    wait_until("all standby machines are gone", REFILL_LIMIT, || {
        left_of("standby-").is_empty()
    });
}
