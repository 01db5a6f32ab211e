//! The host's files, by proc, sys and cgroups, by bind mounts, and by inherited file descriptors.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use nspawn_common::lifecycle::uid_range;
use nspawn_tests::{Machine, finish, sh};

use crate::probe::{Place, Probe};
use crate::suite::{Control, Fixture, Outside, Suite, UNCONFINED, machine};

/// Looks for a file of the host below the root and the descriptors of each process.
const ROOTS: &str = r#"
for there in /proc/[0-9]*/root /proc/[0-9]*/cwd/../../../../../.. /proc/[0-9]*/fd/*/../../../../../..; do
    grep -q "$2" "$there$1" 2>/dev/null && got_in "$there"
done
kept_out 'not in any process'
"#;

/// Opens a file by its handle, which needs no path. Root in containers used this before user
/// namespaces.
const HANDLE: &str = r#"
my ($number, $handle, $secret) = @ARGV;
for my $mount ("/run/host/os-release", "/etc/os-release", "/", "/run/nspawn-ci") {
    sysopen(my $there, $mount, 0) or next;
    my $bytes = pack("H*", $handle);
    my $fd = syscall($number, fileno($there), $bytes, 0);
    $why = "$!";
    next if $fd < 0;
    open(my $file, "<&=", $fd);
    got_in $mount if <$file> =~ /$secret/;
}
kept_out $why;
"#;

/// Runs a function in each way that proc may become writable.
const THROUGH_PROC: &str = r#"
everywhere() {
    "$1" /proc
    attempt mount -o remount,bind,rw /proc/sys && "$1" /proc
    attempt umount -R /proc/sys && "$1" /proc
    mkdir -p /tmp/proc
    attempt mount -t proc proc /tmp/proc && "$1" /tmp/proc
    attempt unshare --user --map-root-user --pid --fork mount -t proc proc /tmp/proc && "$1" /tmp/proc
}
"#;

/// Writes the current value of sysctls.
const SYSCTLS: &str = r#"
rewrite() {
    for name in kernel/core_pattern kernel/modprobe kernel/panic kernel/sysrq vm/overcommit_memory fs/file-max; do
        value=$(cat "$1/sys/$name" 2>/dev/null) || continue
        { printf '%s\n' "$value" >"$1/sys/$name"; } 2>/dev/null && got_in "$1/sys/$name"
    done
}
everywhere rewrite
kept_out "$why"
"#;

/// Asks for SysRq H, which prints a help to the kernel's log.
const SYSRQ: &str = r#"
ask() {
    { echo h >"$1/sysrq-trigger"; } 2>/dev/null && got_in "$1"
}
[ -e /proc/sysrq-trigger ] || unsupported 'no sysrq-trigger'
everywhere ask
kept_out "$why"
"#;

/// Reads the addresses of kernel symbols.
const KALLSYMS: &str = r#"
look() {
    grep -qv '^0000' "$1/kallsyms" 2>/dev/null && got_in "$1"
}
attempt umount /proc/kallsyms
everywhere look
kept_out 'no address'
"#;

/// Reads the kernel's memory and its log.
const KCORE: &str = r#"
look() {
    head -c 4096 "$1/kcore" 2>/dev/null | grep -q ELF && got_in "$1"
    head -c 4096 "$1/kmsg" 2>/dev/null | grep -q . && got_in "$1"
}
[ -e /proc/kcore ] || unsupported 'no kcore'
everywhere look
kept_out "$why"
"#;

/// Looks for writable files in sys, without the machine's own network devices and cgroups.
const SYS: &str = r#"
writable() {
    find "$1" -xdev -type f ! -path '*/net/*' ! -path '*/cgroup/*' -perm /222 -print0 |
        perl -0 -ne 'chomp; sysopen(F, $_, 1) and print and exit'
}
everywhere() {
    there=$(writable "$1") || exit
    [ -z "$there" ] || got_in "$there"
}
everywhere /sys/
for below in /sys /sys/kernel /sys/devices /sys/class /sys/block; do
    attempt mount -o remount,bind,rw "$below" && everywhere "$below/"
    attempt umount "$below" && everywhere "$below/"
done
mkdir -p /tmp/sys
attempt mount -t sysfs sys /tmp/sys && everywhere /tmp/sys/
kept_out "$why"
"#;

/// Looks for the slice of all machines, in which the host's cgroups are visible.
const CGROUPS: &str = r#"
look() { [ ! -e "$1/machine.slice/machine-ci.slice" ] || got_in "$1"; }
look /sys/fs/cgroup
mkdir -p /tmp/cgroup
attempt mount -t cgroup2 cgroup2 /tmp/cgroup && look /tmp/cgroup
attempt unshare --cgroup mount -t cgroup2 cgroup2 /tmp/cgroup && look /tmp/cgroup
for there in /proc/[0-9]*/root/sys/fs/cgroup /proc/[0-9]*/cwd; do look "$there"; look "$there/.."; look "$there/../.."; done
kept_out 'no cgroup of the host'
"#;

/// Sets the `release_agent` of a hierarchy, a program that the kernel runs as the host's root.
const RELEASE_AGENT: &str = r#"
mkdir -p /tmp/cgroup
for options in none,name=attack all $(sed 's/^[0-9]*:\(.*\):.*/\1/' /proc/self/cgroup); do
    attempt mount -t cgroup -o "$options" cgroup /tmp/cgroup || attempt mount -t cpuset cpuset /tmp/cgroup || continue
    { echo /tmp/evil >/tmp/cgroup/release_agent; } 2>/dev/null && got_in "release_agent of $options"
    attempt mkdir /tmp/cgroup/attack && rmdir /tmp/cgroup/attack && got_in "a cgroup in $options"
    umount /tmp/cgroup
done
kept_out "$why"
"#;

/// Raises the limits of the machine's cgroups, and moves itself to others.
const LIMITS: &str = r#"
for limit in $(find /sys/fs/cgroup -maxdepth 2 -name '*.max*'); do
    { echo max >"$limit"; } 2>/dev/null
done
for procs in /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/../cgroup.procs /tmp/cgroup/cgroup.procs; do
    { echo $$ >"$procs"; } 2>/dev/null
done
grep '^0::/[.][.]' /proc/self/cgroup && got_in 'another cgroup'
kept_out 'still in its own'
"#;

/// Writes to a read-only bind mount in each way.
const READ_ONLY: &str = r#"
try() { { echo evil >"$1/evil"; } 2>/dev/null && got_in "$2"; }
try "$1" 'as it is'
attempt mount -o remount,bind,rw "$1" && try "$1" remount
attempt mount -o remount,rw "$1" && try "$1" 'remount of the file system'
mkdir -p /tmp/again
attempt mount --bind "$1" /tmp/again && attempt mount -o remount,bind,rw /tmp/again && try /tmp/again 'another bind'
clear='my $path = shift; my $attributes = pack("Q4", 0, 1, 0, 0); exit(syscall(shift, -100, $path, 0, $attributes, 32) != 0)'
attempt perl -e "$clear" "$1" "$2" && try "$1" mount_setattr
attempt unshare --user --map-root-user --mount mount -o remount,bind,rw "$1" && got_in 'a user namespace'
attempt umount "$1" && try "$1" umount
for there in /proc/[0-9]*/root; do try "$there$1" "$there"; done
kept_out "$why"
"#;

/// Swaps a directory and a link all the time, each time at once: the flag is RENAME_EXCHANGE.
const SWAP: &str = r#"my ($d, $link) = ("d", "link"); chdir "/shown" or die; 1 while syscall($ARGV[0], -100, $d, -100, $link, 2) == 0;"#;
/// Number of starts of a machine during the swaps.
const SWAPPED_STARTS: usize = 40;

/// Acts as the host's root in a bind mount of a directory that a user owns.
const OWNERS: &str = r#"
cd "$1" || exit
grep -q . secret 2>/dev/null && got_in "reading root's"
{ echo evil >root/evil; } 2>/dev/null && got_in "writing to root's"
attempt chown 0:0 . && attempt setpriv --reuid=0 --clear-groups cat secret && got_in "reading root's"
touch mine && cp /bin/true setuid && chmod 6755 setuid || exit
for owner in 0 1 1000 65534; do attempt chown "$owner:$owner" mine; done
attempt chown root:root setuid
attempt mknod device c 1 3
kept_out "$why"
"#;

/// Looks for descriptors that were opened on the host: their mount is in no mount table of the
/// machine.
const DESCRIPTORS: &str = r#"
my (%mounts, $count);
for (glob "/proc/[0-9]*/mountinfo") {
    open(my $table, "<", $_) or next;
    $mounts{(split)[0]} = 1 while <$table>;
}
for my $fd (glob "/proc/[0-9]*/fd/*") {
    my $file = readlink($fd) // next;
    next if $file !~ m(^/) || $file =~ m(^/memfd:);
    open(my $info, "<", $fd =~ s(/fd/)(/fdinfo/)r) or next;
    my ($mount) = join("", <$info>) =~ /^mnt_id:\s*(\d+)/m or next;
    got_in "$fd is $file" if !$mounts{$mount};
    $count++;
}
$count > 10 ? kept_out "$count descriptors are of its own" : print "can't look\n";
"#;

/// Holds a descriptor on a detached mount, which the script must find.
const HOLDER: &str =
    "mount -t tmpfs none /mnt && exec 5>/mnt/held && umount --lazy /mnt && echo on && sleep 60";

pub fn rows(suite: &mut Suite, fixture: &Fixture) {
    let outside = Outside::new();
    let (secret, path) = (&*outside.secret, outside.file("secret"));
    suite.probe(
        "the host's files through the roots of processes",
        Control::Host,
        &Probe::shell(ROOTS, &[&path, secret]),
        fixture,
    );
    let handle = handle_of(Path::new(&path));
    let number = nix::libc::SYS_open_by_handle_at.to_string();
    let probe = Probe::perl(HANDLE, &[&number, &handle, secret]);
    suite.probe(
        "the host's files by handles of their file system",
        Control::Host,
        &probe,
        fixture,
    );
    for (name, control, script) in [
        (
            "sysctls of the kernel: core_pattern, modprobe, overcommit_memory, and more",
            Control::Unconfined,
            SYSCTLS,
        ),
        ("sysrq-trigger", Control::Unconfined, SYSRQ),
        (
            "addresses of the kernel in kallsyms",
            Control::Host,
            KALLSYMS,
        ),
        (
            "the kernel's memory and log: kcore, kmsg",
            Control::Host,
            KCORE,
        ),
    ] {
        suite.probe(
            name,
            control,
            &Probe::shell(&[THROUGH_PROC, script].concat(), &[]),
            fixture,
        );
    }
    suite.probe(
        "writing anywhere below sys",
        Control::Unconfined,
        &Probe::shell(SYS, &[]),
        fixture,
    );
    suite.probe(
        "the host's cgroups",
        Control::Host,
        &Probe::shell(CGROUPS, &[]),
        fixture,
    );
    suite.probe(
        "cgroups of version 1, and their release_agent",
        Control::Host,
        &Probe::shell(RELEASE_AGENT, &[]),
        fixture,
    );
    suite.row(
        "raising the machine's limits, or leaving its cgroup",
        limits_do_not_rise,
    );
    suite.row(
        "writing to a read-only bind mount",
        read_only_binds_do_not_change,
    );
    suite.row(
        "acting as the host's root in a bind mount of a user's directory",
        files_keep_their_owners,
    );
    suite.row(
        "swapping a bind mount's source with a link to the host's files",
        swapped_sources_are_refused,
    );
    suite.row(
        "file descriptors of the host in processes of the machine",
        || descriptors_do_not_leak(fixture),
    );
    suite.probe(
        "user IDs of another machine, and IDs after the machine's own range",
        Control::Host,
        &foreign_ids(&fixture.neighbour),
        fixture,
    );
    suite.row(
        "redirects to other directories in the layer's attributes",
        forged_redirects_are_ignored,
    );
    suite.row("file descriptors of nspawn-run's caller", || {
        descriptors_of_the_caller_stay(&fixture.attacker)
    });
}

/// Marks a directory as the renamed directory `/secret` of the lower layer, as overlayfs does itself.
///
/// The kernel of the host follows these attributes when it mounts the layer.
const REDIRECT: &str = r#"
my ($number, $directory) = @ARGV;
mkdir $directory;
for (1, 0) {
    my ($name, $value) = ($_ ? "trusted.overlay.redirect" : "user.overlay.redirect", "/secret");
    syscall(0 + $number, $directory, $name, $value, length $value, 0) == 0 ? print "$name\n" : warn "$name: $!\n";
}
"#;

/// Looks for the mark.
const SEE_REDIRECT: &str = r#"
my ($number, $directory) = @ARGV;
my ($name, $value) = ("trusted.overlay.redirect", " " x 100);
my $size = syscall(0 + $number, $directory, $name, $value, 100);
print $size < 0 ? "no redirect\n" : "redirect\n";
"#;

/// Gives a file, and then itself, to users of the host, and maps such a user in a namespace.
const FOREIGN_IDS: &str = r#"
my $file = "/tmp/foreign-ids";
open(my $out, ">", $file) or die "$!";
for my $id (@ARGV) {
    chown(0 + $id, -1, $file) and unlink($file), got_in "chown $id";
    $why = "$!";
    my $child = fork // die "$!";
    unless ($child) { $> = $id; exit($> == $id ? 0 : 1) }
    waitpid($child, 0);
    got_in "seteuid $id" if $? == 0;
    system("unshare", "--user", "--map-users=$id,0,1", "true") == 0 and got_in "uid_map $id";
}
unlink $file;
kept_out $why;
"#;

/// Uses the first and the last ID of another machine, the first ID after a machine's range, and the
/// last ID of the kernel.
fn foreign_ids(neighbour: &Machine) -> Probe {
    let ids = uid_range::of(&neighbour.paths()).unwrap();
    let last = ids.base + (ids.size - 1);
    let ids = [ids.base, last, ids.size, u32::MAX - 1].map(|id| id.to_string());
    Probe::perl(FOREIGN_IDS, &ids.each_ref().map(String::as_str))
}

/// Sets the mark in a machine, and looks for it in the layer, which is a directory of the host.
fn forged_redirects_are_ignored() -> Control {
    let (set, get) = (
        nix::libc::SYS_setxattr.to_string(),
        nix::libc::SYS_getxattr.to_string(),
    );
    let machine = machine(&["--layer-size=infinity"]);
    let forged = machine.run(["perl", "-e", REDIRECT, &set, "/opt/trap"]);
    forged.expect_err("trusted.overlay.redirect: Operation not permitted");
    let trap = machine.paths().layer().join("upper/opt/trap");
    let look = |directory: &Path| {
        let directory = directory.to_string_lossy();
        let words = ["-e", SEE_REDIRECT, &get, &directory];
        nspawn_tests::call("perl", words).expect(0).out()
    };
    assert!(trap.is_dir());
    assert_eq!(look(&trap), "no redirect\n");
    assert_eq!(machine.sh("ls /opt/trap").expect(0).out(), "");
    let outside = Outside::new();
    let control = outside.path.join("trap");
    let words = ["-e", REDIRECT, &set, &control.to_string_lossy()];
    let marked = nspawn_tests::call("perl", words);
    assert!(marked.out().contains("trusted"), "{}", marked.describe());
    assert_eq!(look(&control), "redirect\n");
    Control::Host
}

/// Returns the file handle of name_to_handle_at(2) in hexadecimal.
fn handle_of(path: &Path) -> String {
    let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    let mut handle = [0_u8; 136];
    handle[..4].copy_from_slice(&128_u32.to_ne_bytes());
    let mut mount = 0;
    let number = nix::libc::SYS_name_to_handle_at;
    // SAFETY: the path ends with NUL, the handle's buffer has the size in its first field, and the
    // mount id is an int.
    let done = unsafe {
        nix::libc::syscall(
            number,
            nix::libc::AT_FDCWD,
            path.as_ptr(),
            handle.as_mut_ptr(),
            &raw mut mount,
            0,
        )
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    handle.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn limits_do_not_rise() -> Control {
    let machine = machine(&[]);
    let unit = format!(
        "/sys/fs/cgroup/machine.slice/machine-ci.slice/nspawn-{}.service",
        machine.name
    );
    // Every cgroup has this limit, even without controllers.
    fs::write(format!("{unit}/cgroup.max.descendants"), "777").unwrap();
    let limits = || sh(&format!("grep . {unit}/*.max*")).out();
    let before = limits();
    assert!(before.contains("777"), "{before}");
    Probe::shell(LIMITS, &[]).is_kept_out(&machine);
    assert_eq!(limits(), before);
    Control::Absent
}

fn read_only_binds_do_not_change() -> Control {
    let outside = Outside::new();
    let bind = format!("--bind-ro={}:/shown", outside.path.display());
    let probe = Probe::shell(
        READ_ONLY,
        &["/shown", &nix::libc::SYS_mount_setattr.to_string()],
    );
    let (machine, before) = (machine(&[&bind]), outside.state());
    probe.is_kept_out(&machine);
    assert_eq!(outside.state(), before);
    let bare = crate::suite::machine(&[&UNCONFINED[..], &[&bind]].concat());
    probe.gets_in(Place::Machine(&bare));
    assert!(outside.path.join("evil").exists());
    Control::Unconfined
}

fn files_keep_their_owners() -> Control {
    let outside = Outside::new();
    fs::set_permissions(outside.path.join("secret"), Permissions::from_mode(0o600)).unwrap();
    fs::create_dir(outside.path.join("root")).unwrap();
    chown(&outside.path, Some(1000), Some(1000)).unwrap();
    let bind = format!("--bind={}:/shown", outside.path.display());
    let probe = Probe::shell(OWNERS, &["/shown"]);
    probe.is_kept_out(&machine(&[&bind]));
    let owned = sh(&format!(
        "cd {} && find . ! -uid 1000 | sort",
        outside.path.display()
    ))
    .expect(0)
    .out();
    assert_eq!(
        owned,
        "./root
./secret
"
    );
    probe.gets_in(Place::Machine(&machine(
        &[&UNCONFINED[..], &[&bind]].concat(),
    )));
    Control::Unconfined
}

/// Starts machines with a bind mount whose source another machine swaps with a link all the time.
fn swapped_sources_are_refused() -> Control {
    let (shared, outside) = (Outside::new(), Outside::new());
    sh(&format!(
        "cd {} && rm secret && mkdir d && touch d/inside && ln -s {} link",
        shared.path.display(),
        outside.path.display()
    ))
    .expect(0);
    let bind = |source: &str, options| format!("--bind={}:/shown:{options}", shared.file(source));
    let victim = |options| machine(&["--init=none", "--network=none", &bind("d", options)]);
    // The control follows links, as systemd-nspawn does.
    let (victim, control) = (victim("idmap,nosymlinks"), victim("idmap"));
    let attacker = machine(&[&bind("", "idmap")]);
    let number = nix::libc::SYS_renameat2.to_string();
    let started = attacker
        .command(["systemd-run", "--quiet", "perl", "-e", SWAP, &number])
        .status();
    assert!(started.unwrap().success());
    let mut seen = [0; 3];
    for _ in 0..SWAPPED_STARTS {
        match &*start_and_look(&victim) {
            "inside\n" => seen[0] += 1,
            "" => seen[1] += 1,
            _ => seen[2] += 1,
        }
    }
    assert_eq!(seen[2], 0, "the host's files are shown: {seen:?}");
    assert!(seen[0] > 0 && seen[1] > 0, "nothing was swapped: {seen:?}");
    assert!(
        (0..SWAPPED_STARTS).any(|_| start_and_look(&control) == "secret\n"),
        "the attack fails at its control, so it proves nothing"
    );
    Control::Permitted
}

/// Runs a command in a machine, which starts for it. Returns the names of the files in its bind
/// mount, or nothing if the machine refuses to start.
fn start_and_look(machine: &Machine) -> String {
    let done = machine.sh("ls /shown");
    let is_refused = done.code() == 125 && done.err().contains("through a symbolic link");
    assert!(done.code() == 0 || is_refused, "{}", done.describe());
    done.out()
}

fn descriptors_do_not_leak(fixture: &Fixture) -> Control {
    let probe = Probe::perl(DESCRIPTORS, &[]);
    let holder = Probe::shell(HOLDER, &[]).start(Place::Host);
    probe.gets_in(Place::Host);
    drop(holder);
    probe.is_kept_out(&fixture.attacker);
    Control::Host
}

/// Checks that a command gets three pipes, although nspawn-run's caller has files and a directory
/// open.
fn descriptors_of_the_caller_stay(machine: &Machine) -> Control {
    let outside = Outside::new();
    let look = "for fd in /proc/self/fd/*; do readlink \"$fd\"; done | sed 's/[0-9]*//g'";
    let caller = "exec nspawn-run \"$0\" sh -c \"$1\" <secret 5<. 6<>secret 7>>log >out 2>>log";
    let mut command = Command::new("sh");
    let before = outside.owner_of("secret");
    finish(
        command
            .args(["-c", caller, &machine.name, look])
            .current_dir(&outside.path),
        b"",
    )
    .expect(0);
    let descriptors = fs::read_to_string(outside.path.join("out")).unwrap();
    assert!(
        descriptors
            .lines()
            .all(|line| line.starts_with("pipe:") || line.starts_with("/proc/")),
        "{descriptors}"
    );
    assert_eq!(
        descriptors
            .lines()
            .filter(|line| line.starts_with("pipe:"))
            .count(),
        3,
        "{descriptors}"
    );
    assert_eq!(outside.owner_of("secret"), before);
    Control::Absent
}
