//! `scripts/bin/check-host`: its verdict on a suitable host, and on hosts with one defect each.

use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};

use nspawn_tests::{Done, call, image, sh};

/// Runs `check-host` after `breakage`, in a separate mount namespace.
fn check_after(breakage: &str) -> Done {
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

/// Returns a command that bind mounts an executable file with this text over `path`.
fn replace_file(path: &str, text: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let unique = COUNT.fetch_add(1, Ordering::Relaxed);
    let file = std::env::temp_dir().join(format!("e2e-check-{}-{unique}", std::process::id()));
    fs::write(&file, text).unwrap();
    sh(&format!("chmod 755 {}", file.display())).expect(0);
    format!("mount --bind {} {path}", file.display())
}

#[test]
fn suitable_host_passes() {
    let done = call("check-host", [image()]).expect(0);
    assert!(!done.out().contains("bad "), "{}", done.describe());
    done.expect_out(&format!("a machine of {} runs a command", image()));
}

/// A defect of the host: commands that cause it, the line of `check-host`, words of the remedy.
type Defect<'a> = (String, &'a str, &'a str);

fn check_defects(defects: &[Defect]) {
    for (breakage, line, remedy) in defects {
        let done = check_after(breakage);
        let out = done.out();
        let remedy_line = out
            .lines()
            .skip_while(|found| !found.starts_with(line))
            .nth(1);
        assert!(
            remedy_line.is_some_and(|found| found.contains("remedy: ") && found.contains(remedy)),
            "{line}: {}",
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
}

#[test]
fn defects_of_kernel_and_systemd_are_reported_with_their_remedies() {
    check_defects(&[
        (
            replace_file("/usr/bin/systemctl", "#!/bin/sh\necho systemd 251"),
            "bad   the version of systemd is 251",
            "Debian 12",
        ),
        (
            "mount -t tmpfs none /run/systemd".into(),
            "bad   systemd does not run this host",
            "PID 1",
        ),
        (
            replace_file("/proc/sys/kernel/osrelease", "6.0.9\n"),
            "bad   the version of Linux is 6.0.9",
            "6.1",
        ),
        (
            "mount -t tmpfs none /sys/fs/cgroup".into(),
            "bad   cgroups are not of version 2",
            "kernel command line",
        ),
        (
            replace_file("/sys/fs/cgroup/cgroup.controllers", "cpu pids\n"),
            "note  the kernel has no controller for memory",
            "",
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
            "mount -t tmpfs none /sys/module; mkdir /sys/module/af_alg /sys/module/esp4 /sys/module/vsock; \
             echo live | tee /sys/module/af_alg/initstate /sys/module/esp4/initstate >/dev/null"
                .into(),
            "note  modules for sockets that no machine may create are loaded: af_alg esp4",
            "modprobe -r af_alg esp4;",
        ),
        (
            replace_file("/proc/sys/user/max_user_namespaces", "0\n"),
            "bad   user namespaces are forbidden",
            "sysctl -w",
        ),
        (
            replace_file("/proc/filesystems", "nodev tmpfs\n"),
            "bad   the kernel has no overlayfs",
            "modprobe overlay",
        ),
        (
            replace_file("/dev/loop-control", ""),
            "bad   there are no loop devices",
            "--layer=tmpfs",
        ),
        (
            replace_file("/proc/sys/fs/inotify/max_user_watches", "8192\n"),
            "note  the kernel allows 8192 inotify watches",
            "sysctl -w fs.inotify.max_user_watches=",
        ),
        (
            replace_file("/proc/sys/kernel/pty/max", "1024\n"),
            "note  the kernel allows 1024 pseudoterminals",
            "sysctl -w kernel.pty.max=",
        ),
        (
            replace_file("/proc/sys/vm/max_map_count", "65530\n"),
            "note  the kernel allows 65530 memory maps of a process",
            "sysctl -w vm.max_map_count=262144",
        ),
        (
            replace_file("/proc/sys/vm/oom_dump_tasks", "1\n"),
            "note  the kernel lists all processes of a job",
            "sysctl -w vm.oom_dump_tasks=0",
        ),
        (
            "mount -t tmpfs none /proc/sys/net; mkdir -p /proc/sys/net/ipv4/neigh/default; \
             echo 1024 >/proc/sys/net/ipv4/neigh/default/gc_thresh3"
                .into(),
            "note  the kernel allows 1024 neighbours (ARP)",
            "sysctl -w net.ipv4.neigh.default.gc_thresh3=",
        ),
        (
            "mount -t tmpfs none /proc/sys/kernel; mkdir /proc/sys/kernel/yama; uname -r >/proc/sys/kernel/osrelease; \
             echo 3 >/proc/sys/kernel/yama/ptrace_scope"
                .into(),
            "note  ptrace is forbidden",
            "kernel.yama.ptrace_scope",
        ),
        (
            replace_file(
                "/usr/bin/systemctl",
                "#!/bin/sh\ntest $1 != is-enabled && echo systemd 252",
            ),
            "note  nothing removes",
            "enable nspawn-ci-stale.timer",
        ),
    ]);
}

#[test]
fn defects_of_the_network_are_reported_with_their_remedies() {
    check_defects(&[
        (
            "mount --bind /dev/null /usr/bin/pasta".into(),
            "bad   pasta is not installed",
            "apt-get install passt",
        ),
        (
            "mount --bind /dev/null $(command -v ip)".into(),
            "note  the kernel can't create bridges",
            "modprobe -a bridge",
        ),
        (
            "mount --bind /dev/null $(command -v ip)".into(),
            "bad   ip is not installed",
            "apt-get install iproute2",
        ),
        (
            replace_file("/etc/resolv.conf", "search example.test\n"),
            "note  no name server",
            "add one there",
        ),
    ]);
}

#[test]
fn missing_space_is_reported_with_its_remedy() {
    sh("mkdir -p /var/lib/nspawn-ci").expect(0);
    check_defects(&[
        (
            "mount -t tmpfs -o size=20m none /var/lib/nspawn-ci".into(),
            "bad   20 MiB are free",
            "larger disk",
        ),
        (
            "mkdir -p /run/nspawn-ci; mount -t tmpfs -o size=100k none /run/nspawn-ci".into(),
            "bad   100 KiB are free in /run",
            "mount -o remount,size=",
        ),
        (
            "mount -t tmpfs -o ro none /var/lib/nspawn-ci".into(),
            "bad   /var/lib/nspawn-ci is read-only",
            "mount a writable file system",
        ),
    ]);
}

/// Commands that put a gitlab-runner on the PATH.
const ADD_RUNNER: &str =
    "mkdir -p /run/check; PATH=$PATH:/run/check; cp /bin/true /run/check/gitlab-runner";

/// Returns commands that make systemctl show these properties of gitlab-runner.service.
fn hardened(properties: &str) -> String {
    let unit = format!(
        "#!/bin/sh\ncase $* in *PrivateUsers*) printf '{properties}' ;; *--version) echo systemd 252 ;; esac"
    );
    format!(
        "{}; {ADD_RUNNER}",
        replace_file("/usr/bin/systemctl", &unit)
    )
}

#[test]
fn defects_of_gitlab_runner_are_reported_with_their_remedies() {
    let other_user = replace_file(
        "/usr/bin/systemctl",
        "#!/bin/sh\ncase $1 in show) echo ci ;; *) echo systemd 252 ;; esac",
    );
    let other_user = format!("{other_user}; {ADD_RUNNER}");
    check_defects(&[
        (
            "true".into(),
            "note  gitlab-runner is not installed",
            "install it",
        ),
        (
            hardened("PrivateUsers=yes\\n"),
            "bad   gitlab-runner.service denies its jobs",
            "set PrivateUsers=no",
        ),
        (
            hardened("RestrictSUIDSGID=yes\\n"),
            "bad   gitlab-runner.service denies its jobs",
            "set RestrictSUIDSGID=no",
        ),
        (
            hardened("ProtectSystem=strict\\nReadWritePaths=/srv\\n"),
            "bad   gitlab-runner.service denies its jobs",
            "ReadWritePaths=/run /var/lib /var/cache",
        ),
        (
            hardened("CapabilityBoundingSet=cap_chown cap_dac_override\\n"),
            "bad   gitlab-runner.service denies its jobs",
            "set CapabilityBoundingSet=CAP_SYS_PTRACE",
        ),
        (
            other_user,
            "bad   gitlab-runner.service runs as ci",
            "remove User=",
        ),
    ]);
    sh("rm -r /run/check").expect(0);
}

#[test]
fn image_that_does_not_start_is_reported() {
    let name = format!("empty-{}", std::process::id());
    let path = format!("/var/lib/machines/{name}");
    fs::create_dir(&path).unwrap();
    let done = call("check-host", [&name]).expect(1);
    fs::remove_dir(&path).unwrap();
    done.expect_out(&format!(
        "bad   can't use a machine of {name}: nspawn-prepare: "
    ));
}

#[test]
fn unknown_option_is_refused() {
    call("check-host", ["--nonsense"]).expect(1);
}
