//! Processes: debuggers, limits, priorities, namespaces.

use crate::row::{BOOTED, LASTING, Row, row};

pub const PACKAGES: &str =
    "strace gdb procps psmisc lsof busybox-static faketime util-linux python3 gcc libc6-dev";

pub fn rows() -> Vec<Row> {
    [
        debuggers(),
        control(),
        limits(),
        priorities(),
        namespaces(),
        calls(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn debuggers() -> Vec<Row> {
    vec![
        row("`strace -f`", "strace -f sh -c true 2>&1 | grep -o 'exited with 0' | head -n 1").prints("exited with 0"),
        row("`strace -p`", "sleep 60 & sleep 0.2; timeout 1 strace -q -p $! -o o 2>/dev/null || true; grep -q 'nanosleep\\|restart_syscall' o"),
        row("`gdb` of a program", "gdb -batch -ex starti -ex continue /bin/true 2>&1 | grep -o 'exited normally'").prints("exited normally"),
        row("`gdb -p`", "sleep 60 & sleep 0.2; gdb -batch -p $! -ex bt 2>&1 | grep -o nanosleep | head -n 1").prints("nanosleep"),
        row("`gcore`", "sleep 60 & sleep 0.2; gcore -o core $! >/dev/null 2>&1; test -s core.$!"),
        row("core files in the working directory", "ulimit -c unlimited; bash -c 'kill -SEGV $$' || true; ls core*").fails(
            "cannot access 'core*'",
            "The host would get the memory of a job. `gdb` and `gcore` work.",
        )
        .remark("podman: the host's `kernel.core_pattern` decides."),
        row(
            "perf_event_open(2), for perf and rr",
            "call 298 0 0 -1 -1 0",
        )
        .fails("Operation not permitted", "`--system-call-filter=perf_event_open` allows it, if the host's `kernel.perf_event_paranoid` does.")
        .podman_fails("Operation not permitted"),
    ]
}

fn control() -> Vec<Row> {
    vec![
        row("job control", "bash -mc 'sleep 60 & kill -STOP %1; kill -CONT %1; kill %1; wait %1 || echo $?' 2>/dev/null").prints("143"),
        row("traps and real-time signals", "trap 'echo usr' USR1; trap 'echo rt' RTMIN+3; kill -USR1 $$; kill -RTMIN+3 $$").prints("usr\nrt"),
        row("`setsid`", "setsid -w sh -c 'test $(ps -o sid= -p $$) = $$'"),
        row("`timeout`", "timeout 0.2 sleep 60 || echo $?").prints("124"),
        row("`nohup`", "nohup echo x >/dev/null; nohup sh -c 'echo y' >o 2>/dev/null; cat o").prints("y"),
        row(
            "orphans do not stay as zombies",
            "sh -c 'sleep 0.2 & echo $! >pid'; wait_for test ! -e /proc/$(cat pid) || { grep State /proc/$(cat pid)/status; exit 1; }",
        )
        .podman_fails("zombie"),
        row("500 processes at a time", "for i in {1..500}; do sleep 20 & done; jobs -r | wc -l").prints("500"),
        row("`ps`, `top`, `pgrep` and `free`", "ps aux >o; grep -c ' ps aux$' o; top -bn1 | grep -c Tasks; pgrep -c bash >/dev/null; free | grep -c Mem").prints("1\n1\n1"),
        row("`lsof` and `fuser`", "exec 5>f; lsof -t f | grep -c $$; fuser f 2>/dev/null | grep -c $$").prints("1\n1"),
        row("`killall` and `pkill`", "cp /bin/sleep rowsleep; ./rowsleep 60 & sleep 0.2; killall rowsleep; wait $! || echo $?
             ./rowsleep 60 & sleep 0.2; pkill rowsleep; wait $! || echo $?")
        .prints("143\n143"),
        row("`faketime`", "faketime '2000-01-01 12:00:00' date +%Y").prints("2000"),
    ]
}

fn limits() -> Vec<Row> {
    vec![
        row("`ulimit -n 8192`", "ulimit -n 8192; ulimit -n").prints("8192"),
        row("`ulimit -s unlimited`", "ulimit -s unlimited; ulimit -s").prints("unlimited"),
        row("`prlimit`", "prlimit --nofile=100 sh -c 'ulimit -n'").prints("100"),
        row("`ulimit -v`", "(ulimit -v 100000; python3 -c 'b = bytearray(10**9)' 2>&1 || true) | grep -o MemoryError").prints("MemoryError"),
        row(
            "a cgroup of one's own",
            "d=/sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup)/row; mkdir $d; sleep 60 & echo $! >$d/cgroup.procs
             cat $d/cgroup.procs | wc -l; kill $!; wait $! || true; wait_for rmdir $d",
        )
        .prints("1")
        .podman_fails("Read-only file system"),
        row("a service with `Delegate=yes`", "systemd-run --quiet --wait --pipe -p Delegate=yes sh -c 'mkdir /sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup)/row && echo made'")
            .only(BOOTED)
            .prints("made"),
        row("locked memory", r#"python3 -c '
import ctypes, mmap
m = mmap.mmap(-1, 65536)
c = ctypes.CDLL(None)
print(c.mlock(ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(m))), ctypes.c_size_t(65536)))'"#)
        .prints("0"),
    ]
}

fn priorities() -> Vec<Row> {
    vec![
        row("`nice`", "nice -n 10 nice").prints("10"),
        row("`renice` to a higher priority", "renice -n -5 -p $$")
            .fails("Permission denied", "Priorities concern the whole host.")
            .podman_fails("Permission denied"),
        row("`ionice`", "ionice -c 3 ionice").prints("idle"),
        row("real-time priorities by `chrt`", "chrt -f 1 true")
            .fails(
                "Operation not permitted",
                "Priorities concern the whole host.",
            )
            .podman_fails("Operation not permitted"),
        row("`taskset`", "taskset -c 0 nproc").prints("1"),
        row(
            "`choom` to a higher value",
            "choom -n 500 -- cat /proc/self/oom_score_adj",
        )
        .prints("500"),
        row("`choom` to a lower value", "choom -n -900 -- true")
            .fails(
                "Permission denied",
                "The kernel reserves it for root of the host.",
            )
            .podman_fails("Permission denied"),
    ]
}

fn namespaces() -> Vec<Row> {
    vec![
        row("`chroot`", "mkdir bin; cp /bin/busybox bin; chroot . /bin/busybox echo in").prints("in"),
        row("`unshare -r` as a user", "as_ci unshare -r id -u").prints("0"),
        row("`unshare -m` with a tmpfs", "unshare -m sh -c 'mount -t tmpfs none . && stat -fc %T $PWD'").prints("tmpfs").podman_fails("Operation not permitted"),
        row("`unshare -pf --mount-proc`", "unshare -pf --mount-proc ps -o pid= | xargs").prints("1").podman_fails("Operation not permitted"),
        row("`unshare -n`, `-u`, `-i`, `-C` and `-T`", "for n in n u i C T; do unshare -$n true; echo -n $n; done").prints("nuiCT").podman_fails("Operation not permitted"),
        row("`nsenter`", "unshare -u sh -c 'hostname other; exec sleep 60' & sleep 0.3; nsenter -t $! -u hostname").prints("other").podman_fails("Operation not permitted"),
        row("a change of the host name", "old=$(hostname); hostname row; hostname; hostname $old").only(LASTING).prints("row").podman_fails("you must be root"),
        row("`setarch -R`", "setarch -R sh -c 'cat /proc/self/personality'").prints("00040000")
        .podman_fails("Function not implemented"),
    ]
}

fn calls() -> Vec<Row> {
    vec![
        row(
            "settings of the kernel by `sysctl`",
            "sysctl -w vm.max_map_count=300000",
        )
        .fails(
            "permission denied",
            "The kernel has one value for all machines. Its administrator sets it on the host.",
        )
        .podman_fails("permission denied"),
        row("`dmesg`", "dmesg")
            .fails(
                "Operation not permitted",
                "The messages are those of the host.",
            )
            .podman_fails("Operation not permitted"),
        // FAN_CLASS_NOTIF and FAN_REPORT_FID, which the kernel allows to users.
        row("fanotify", "call 300 512 0")
            .prints("succeeded")
            .podman_fails("Operation not permitted"),
        row("Landlock", "call 444 0 0 1").prints("succeeded"),
        row("memory protection keys", "call 330 0 0")
            .prints("succeeded")
            .if_host("grep -qw ospke /proc/cpuinfo"),
        row("io_uring", "call 425 1 0")
            .fails(
                "Function not implemented",
                "Libraries do without. `--system-call-filter=io_uring_setup` allows it.",
            )
            .podman_fails("Function not implemented"),
    ]
}
