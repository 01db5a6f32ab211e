//! AppArmor profiles of the host. They confine programs of the host that a machine needs, and must
//! not confine programs in machines.

use nspawn_tests::{Machine, call, sh};

use crate::outside;

/// Returns what AppArmor has denied since a time.
fn denied_since(time: &str) -> String {
    sh(&format!(
        "journalctl --sync
         journalctl --dmesg --quiet --no-pager --since=@{time} | grep 'apparmor=\"DENIED\"'"
    ))
    .out()
}

/// Returns the time, for [`denied_since`].
#[track_caller]
fn now() -> String {
    sh("date +%s.%N").expect(0).out().trim_end().to_owned()
}

#[test]
fn default_machine_works_with_profiles_in_force() {
    outside::ensure();
    let enforced = sh("aa-status --json").expect(0).out();
    assert!(enforced.contains("\"passt\": \"enforce\""), "{enforced}");
    let since = now();
    for options in [&[][..], &["--init=stub"], &["--init=none"]] {
        let machine = Machine::with(options);
        let answer = machine
            .sh(&outside::connect(outside::SERVER, outside::PORT))
            .expect(0)
            .out();
        assert_eq!(answer.trim(), outside::ANSWER, "{options:?}");
        call("nspawn-cleanup", [&machine.name]).expect(0);
    }
    assert_eq!(denied_since(&since), "");
}

/// Returns whether dbus-daemon asks the kernel's AppArmor about its clients. Machines can't leave
/// the host's profiles there: dbus-daemon would refuse systemd-nspawn (see `launch/apparmor.rs`).
fn dbus_is_mediated() -> bool {
    std::fs::exists("/sys/kernel/security/apparmor/features/dbus/mask").unwrap_or(false)
}

#[test]
fn profiles_of_the_host_do_not_confine_programs_in_machines() {
    let enforced = sh("aa-status --json").expect(0).out();
    assert!(
        enforced.contains("\"named\": \"enforce\"")
            && enforced.contains("\"/usr/bin/man\": \"enforce\""),
        "{enforced}"
    );
    // The control: on the host, the profile denies what follows.
    let before = now();
    let bare = sh("echo hush >/root/secret; cp /bin/cat /tmp/cat
        unshare --mount sh -c 'mount --bind /tmp/cat /usr/sbin/named && /usr/sbin/named /root/secret'");
    assert!(
        bare.code() != 0 && bare.err().contains("Permission denied"),
        "{}",
        bare.describe()
    );
    assert_ne!(denied_since(&before), "", "the journal has the denials");
    let since = now();
    for options in [
        &["--init=stub"][..],
        &["--init=none"],
        &["--init=systemd"],
        &["--init=stub", "--private-users=no"],
    ] {
        let machine = Machine::with(&[&["--network=none"], options].concat());
        let script = "echo hush >/root/secret
            for program in /usr/sbin/named /usr/bin/man; do
                test -e $program || cp /bin/cat $program
            done
            /usr/sbin/named /root/secret && /usr/bin/man /root/secret
            cat /proc/self/attr/current";
        let read = machine.sh(script).expect(0).out();
        assert_eq!(read, "hush\nhush\nunconfined\n", "{options:?}");
    }
    assert_eq!(denied_since(&since), "");
    assert_eq!(
        sh("aa-status --json").expect(0).out(),
        enforced,
        "the host's own profiles have changed"
    );
}

#[test]
fn check_host_notes_that_profiles_confine_machines() {
    let check = "nspawn-check-host --no-boot";
    let expected = if dbus_is_mediated() {
        "note  AppArmor's profiles of the host confine"
    } else {
        "ok    AppArmor, whose profiles confine no program in a machine"
    };
    let done = sh(check);
    done.expect_out(expected);
    let done = sh(&format!(
        "unshare --mount sh -c 'umount --lazy /sys/kernel/security; {check}'"
    ));
    done.expect_out("note  AppArmor's profiles of the host confine");
}
