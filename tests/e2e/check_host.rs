//! What `scripts/bin/check-host` says of a host on which something is broken.

use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};

use nspawn_tests::{Done, call, image, sh};

/// Of a host on which `breakage` was run, by whoever asks alone: what it mounts nobody else sees.
fn checked(breakage: &str) -> Done {
    call(
        "unshare",
        [
            "--mount",
            "--propagation=private",
            "sh",
            "-c",
            &format!("{breakage}\ncheck-host --no-boot"),
        ],
    )
}

fn over(path: &str, text: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let unique = COUNT.fetch_add(1, Ordering::Relaxed);
    let file = std::env::temp_dir().join(format!("e2e-check-{}-{unique}", std::process::id()));
    fs::write(&file, text).unwrap();
    sh(&format!("chmod 755 {}", file.display())).expect(0);
    format!("mount --bind {} {path}", file.display())
}

#[test]
fn a_host_that_will_do_is_told_so() {
    let done = call("check-host", [image()]).expect(0);
    assert!(!done.out().contains("bad "), "{}", done.describe());
    assert!(
        done.out()
            .contains(&format!("a machine of {} runs a command", image())),
        "{}",
        done.describe()
    );
}

#[test]
fn each_thing_that_is_broken_is_named_with_its_mend() {
    let other_user = over(
        "/usr/bin/systemctl",
        "#!/bin/sh\ncase $1 in show) echo ci ;; *) echo systemd 252 ;; esac",
    );
    let other_user = format!(
        "{other_user}; mkdir -p /run/check; PATH=$PATH:/run/check; cp /bin/true /run/check/gitlab-runner"
    );
    let runner =
        "mkdir -p /run/check; PATH=$PATH:/run/check; cp /bin/true /run/check/gitlab-runner";
    let hardened = |properties: &str| {
        let unit = format!(
            "#!/bin/sh\ncase $* in *PrivateUsers*) printf '{properties}' ;; *--version) echo systemd 252 ;; esac"
        );
        format!("{}; {runner}", over("/usr/bin/systemctl", &unit))
    };
    let broken = [
        (
            over("/usr/bin/systemctl", "#!/bin/sh\necho systemd 251"),
            "bad   systemd is 251",
            "Debian 12",
        ),
        (
            "mount -t tmpfs none /run/systemd".into(),
            "bad   systemd does not run this host",
            "PID 1",
        ),
        (
            over("/proc/sys/kernel/osrelease", "6.0.9\n"),
            "bad   Linux is 6.0.9",
            "6.1",
        ),
        (
            "mount -t tmpfs none /sys/fs/cgroup".into(),
            "bad   cgroups are not of version 2",
            "kernel command line",
        ),
        (
            over("/sys/fs/cgroup/cgroup.controllers", "cpu pids\n"),
            "note  the kernel has no controller for memory",
            "",
        ),
        (
            "mount --bind /dev/null /usr/bin/pasta".into(),
            "bad   pasta is not there",
            "apt-get install passt",
        ),
        (
            "PATH=/usr/sbin:/usr/bin:$(dirname $(command -v check-host))".into(),
            "bad   nspawn-run",
            "scripts/install",
        ),
        (
            "mount -t tmpfs none /run/dbus".into(),
            "bad   systemd-machined does not answer",
            "restart systemd-machined",
        ),
        (
            over("/proc/sys/user/max_user_namespaces", "0\n"),
            "bad   user namespaces are forbidden",
            "sysctl -w",
        ),
        (
            over("/proc/filesystems", "nodev tmpfs\n"),
            "bad   the kernel has no overlayfs",
            "modprobe overlay",
        ),
        (
            over("/dev/loop-control", ""),
            "bad   there are no loop devices",
            "--layer=tmpfs",
        ),
        (
            over("/proc/sys/fs/inotify/max_user_instances", "128\n"),
            "note  root may have 128 inotify",
            "sysctl -w",
        ),
        (
            "mount -t tmpfs -o size=20m none /var/lib/nspawn-ci".into(),
            "bad   20 MiB are free",
            "larger disk",
        ),
        (
            "mount --bind /dev/null $(command -v ip)".into(),
            "note  the kernel makes no bridges",
            "modprobe -a bridge",
        ),
        (
            "mount --bind /dev/null $(command -v ip)".into(),
            "bad   ip is not there",
            "apt-get install iproute2",
        ),
        (
            over(
                "/usr/bin/systemctl",
                "#!/bin/sh\ntest $1 != is-enabled && echo systemd 252",
            ),
            "note  nothing removes",
            "enable nspawn-ci-stale.timer",
        ),
        (
            "true".into(),
            "note  gitlab-runner is not there",
            "install it",
        ),
        (
            hardened("PrivateUsers=yes\\n"),
            "bad   gitlab-runner.service takes from its jobs",
            "set PrivateUsers=no",
        ),
        (
            hardened("RestrictSUIDSGID=yes\\n"),
            "bad   gitlab-runner.service takes",
            "set RestrictSUIDSGID=no",
        ),
        (
            hardened("ProtectSystem=strict\\nReadWritePaths=/srv\\n"),
            "bad   gitlab-runner.service takes",
            "ReadWritePaths=/run /var/lib /var/cache",
        ),
        (
            hardened("CapabilityBoundingSet=cap_chown cap_dac_override\\n"),
            "bad   gitlab-runner.service takes",
            "set CapabilityBoundingSet=CAP_SYS_PTRACE",
        ),
        (
            "mkdir -p /run/nspawn-ci; mount -t tmpfs -o size=100k none /run/nspawn-ci".into(),
            "bad   100 KiB are free in /run",
            "mount -o remount,size=",
        ),
        (
            "mount -t tmpfs -o ro none /var/lib/nspawn-ci".into(),
            "bad   /var/lib/nspawn-ci is read-only",
            "can be written to",
        ),
        (
            other_user,
            "bad   gitlab-runner.service runs as ci",
            "remove User=",
        ),
        (
            over("/etc/resolv.conf", "search example.test\n"),
            "note  no name server",
            "add one there",
        ),
    ];
    sh("mkdir -p /var/lib/nspawn-ci").expect(0);
    for (breakage, what, mend) in broken {
        let done = checked(&breakage);
        let out = done.out();
        let said = out
            .lines()
            .skip_while(|line| !line.starts_with(what))
            .nth(1);
        assert!(
            said.is_some_and(|line| line.contains("mend: ") && line.contains(mend)),
            "{what}: {}",
            done.describe()
        );
        assert_eq!(
            done.code(),
            i32::from(out.contains("bad ")),
            "{}",
            done.describe()
        );
        assert_eq!(done.err(), "", "{breakage}");
    }
    sh("rm -r /run/check").expect(0);
}

#[test]
fn an_image_that_starts_no_machine_is_named() {
    let name = format!("empty-{}", std::process::id());
    let path = format!("/var/lib/machines/{name}");
    fs::create_dir(&path).unwrap();
    let done = call("check-host", [&name]).expect(1);
    fs::remove_dir(&path).unwrap();
    assert!(
        done.out()
            .contains(&format!("bad   no machine of {name}: nspawn-prepare: ")),
        "{}",
        done.describe()
    );
    call("check-host", ["--nonsense"]).expect(1);
}
