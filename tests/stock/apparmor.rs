//! The host's AppArmor profiles confine what we call, and must not confine what jobs run.

use nspawn_tests::{Machine, call, sh};

use crate::outside;

/// Fails if AppArmor has denied anything since `journal_cursor`.
#[track_caller]
fn assert_nothing_denied() {
    let denied = sh("journalctl --dmesg --quiet --no-pager | grep 'apparmor=\"DENIED\"'");
    assert_eq!(denied.out(), "", "AppArmor has denied something");
}

#[test]
fn default_machine_works_with_profiles_in_force() {
    outside::ensure();
    let enforced = sh("aa-status --json").expect(0).out();
    assert!(enforced.contains("\"passt\": \"enforce\""), "{enforced}");
    for options in [&[][..], &["--init=stub"], &["--init=none"]] {
        let machine = Machine::with(options);
        let answer = machine.sh(&outside::connect(outside::SERVER, outside::PORT)).expect(0).out();
        assert_eq!(answer.trim(), outside::ANSWER, "{options:?}");
        call("nspawn-cleanup", [&machine.name]).expect(0);
    }
    assert_nothing_denied();
}
