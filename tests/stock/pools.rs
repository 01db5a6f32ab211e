//! Things of which the kernel has only so many. A job takes all that it can get, and other machines
//! and the host go on.

use std::fs;
use std::process::Command;
use std::time::Duration;

use nix::libc;
use nspawn_tests::{BackgroundCommand, Done, Machine, call, image, left_of, sh, wait_until};

/// Limits that are small enough to be reached soon in an emulated machine, by their paths below
/// `/proc/sys`.
const LIMITS: [(&str, &str); 4] = [
    ("user/max_mnt_namespaces", "80"),
    ("user/max_net_namespaces", "20"),
    ("user/max_uts_namespaces", "40"),
    ("user/max_ipc_namespaces", "40"),
];

/// Creates namespaces until the kernel refuses more of each kind, and holds them. `$ARGV[0]` is the
/// number of unshare(2).
const NAMESPACES: &str = r#"
my (@held, @counts);
for my $kind ([0x20000, "mnt"], [0x40000000, "net"], [0x4000000, "uts"], [0x8000000, "ipc"]) {
    my ($flag, $name) = @$kind;
    while (syscall($ARGV[0] + 0, $flag) == 0 && open(my $file, "<", "/proc/self/ns/$name")) { push @held, $file }
    push @counts, "$name: " . @held . " $!";
}
$| = 1;
print "on\n@counts\n";
sleep 120;
"#;

/// Creates cgroups with the memory controller, of whose numbers the kernel has 65535, and prints
/// how many.
const MEMORY_CGROUPS: &str = "cd /sys/fs/cgroup && mkdir pool && cd pool && echo +memory >cgroup.subtree_control && \
    mkdir $(seq 5000) 2>/dev/null; ls -d [0-9]* | wc -l; rmdir [0-9]* && rmdir ../pool";

/// Opens pseudoterminals until the kernel refuses more, and holds them.
const PTYS: &str = r#"
my @held;
while (open(my $file, "+<", "/dev/ptmx")) { push @held, $file }
$| = 1;
print "on\n", scalar(@held), "\n";
sleep 120;
"#;

/// Reserves asynchronous requests until the kernel refuses more or the machine has used most of its
/// memory, and holds them. `$ARGV[0]` is the number of io_setup(2).
const REQUESTS: &str = r#"
sub is_full { open(my $file, "<", "/sys/fs/cgroup/memory.current") or return 0; <$file> > 200 << 20 }
my $taken = 0;
for my $number (32768, 1024, 128, 16) {
    $taken += $number while !is_full() && syscall($ARGV[0] + 0, $number, my $context = pack("Q", 0)) == 0;
}
$| = 1;
print "on\n$taken\n";
sleep 120;
"#;

/// Uses up the memory of the machine several times, with a hundred processes beside.
const OUT_OF_MEMORY: &str =
    "for i in $(seq 100); do sleep 100 & done; for i in $(seq 4); do tail /dev/zero; done; true";

/// Values of sysctls, which are set again when this is dropped.
struct Sysctls(Vec<(String, String)>);

impl Sysctls {
    fn set(values: &[(&str, &str)]) -> Self {
        let set = |(name, value): &(&str, &str)| {
            let path = format!("/proc/sys/{name}");
            let before = fs::read_to_string(&path).unwrap();
            fs::write(&path, value).unwrap();
            (path, before)
        };
        Self(values.iter().map(set).collect())
    }
}

impl Drop for Sysctls {
    fn drop(&mut self) {
        for (path, value) in &self.0 {
            let _ = fs::write(path, value);
        }
    }
}

/// Returns a command that runs the script, which prints a line when it has taken all.
fn attack(script: &str, call_number: libc::c_long) -> String {
    let script = script.replace("$ARGV[0]", &call_number.to_string());
    format!("exec timeout 120 prlimit --nofile=20000 perl -e '{script}'")
}

fn start_on_host(script: &str) -> BackgroundCommand {
    BackgroundCommand::start_command(Command::new("sh").args(["-c", script]))
}

fn start_unit() -> Done {
    sh("timeout 60 systemd-run --quiet --wait --collect --property=PrivateMounts=yes true")
}

fn others_go_on() {
    let machine = Machine::new();
    machine.run(["true"]).expect(0);
    call("nspawn-cleanup", [&machine.name]).expect(0);
    assert_eq!(left_of(&machine.name), "");
    start_unit().expect(0);
}

#[test]
fn namespaces_of_a_job_are_not_those_of_the_host() {
    let machine = Machine::with(&["--network=none"]);
    let _sysctls = Sysctls::set(&LIMITS);
    let attack = attack(NAMESPACES, libc::SYS_unshare);
    let host = start_on_host(&attack);
    let unit = start_unit();
    host.signal("TERM");
    let _ = host.wait();
    assert_ne!(unit.code(), 0, "the host has namespaces left");
    // The kernel destroys namespaces some time after their last process has ended.
    wait_until("a unit starts", Duration::from_secs(60), || {
        start_unit().code() == 0
    });
    // A timer may have started another unit meanwhile.
    sh("systemctl reset-failed").expect(0);
    let attack = BackgroundCommand::start(&machine, &attack);
    others_go_on();
    attack.signal("TERM");
    let done = attack.wait();
    assert!(done.out().contains("mnt: "), "{}", done.describe());
}

#[test]
fn host_keeps_a_reserve_of_pseudoterminals() {
    let _sysctls = Sysctls::set(&[("kernel/pty/max", "1280"), ("kernel/pty/reserve", "1024")]);
    let use_one = || sh("script --quiet --return --command true /dev/null").code();
    let attack = attack(PTYS, 0);
    let host = start_on_host(&attack);
    let code = use_one();
    host.signal("TERM");
    let _ = host.wait();
    assert_ne!(code, 0, "the host has pseudoterminals left");
    let (machine, neighbour) = (Machine::new(), Machine::new());
    let attack = BackgroundCommand::start(&machine, &attack);
    assert_eq!(use_one(), 0);
    start_unit().expect(0);
    neighbour.run(["true"]).expect(0);
    call("nspawn-prepare", [image()]).expect_error(1, "sysctl -w kernel.pty.max=");
    let sysctls = Sysctls::set(&[("kernel/pty/max", "30000")]);
    others_go_on();
    drop(sysctls);
    attack.signal("TERM");
    let taken = attack.wait().out();
    assert!(taken.trim().parse::<usize>().unwrap() > 200, "{taken}");
    others_go_on();
}

fn requests_used() -> usize {
    let used = fs::read_to_string("/proc/sys/fs/aio-nr").unwrap();
    used.trim().parse().unwrap()
}

#[test]
fn no_machine_needs_asynchronous_requests() {
    let _sysctls = Sysctls::set(&[("fs/aio-max-nr", "65536")]);
    let machine = Machine::new();
    let attack = attack(REQUESTS, libc::SYS_io_setup);
    let attack = BackgroundCommand::start(&machine, &attack);
    assert!(requests_used() > 65000, "{}", requests_used());
    others_go_on();
    attack.signal("TERM");
    let _ = attack.wait();
}

#[test]
fn memory_limits_the_asynchronous_requests_of_a_machine() {
    let _sysctls = Sysctls::set(&[("fs/aio-max-nr", "268435456")]);
    let machine = Machine::with(&["--network=none", "--property=MemoryMax=256M"]);
    let attack = attack(REQUESTS, libc::SYS_io_setup);
    let attack = BackgroundCommand::start(&machine, &attack);
    let used = requests_used();
    assert!((1_000_000..5_000_000).contains(&used), "{used}");
    attack.signal("TERM");
    let _ = attack.wait();
}

#[test]
fn messages_about_memory_do_not_list_processes() {
    let machine = Machine::with(&["--network=none", "--property=MemoryMax=96M"]);
    let written = |dump: &str| {
        let _sysctls = Sysctls::set(&[("vm/oom_dump_tasks", dump)]);
        let count = "journalctl --sync; journalctl --quiet --dmesg --output=cat | wc --bytes";
        let count = || sh(count).out().trim().parse::<usize>().unwrap();
        let before = count();
        machine.sh(OUT_OF_MEMORY).expect(0);
        count() - before
    };
    let (long, short) = (written("1"), written("0"));
    assert!(short * 2 < long && short < 40_000, "{short} {long}");
}

#[test]
fn cgroups_of_a_job_leave_the_host_most_numbers() {
    let machine = Machine::with(&["--network=none"]);
    let done = machine.sh(MEMORY_CGROUPS).expect(0);
    let number: usize = done.out().trim().parse().unwrap();
    assert!((1000..=2048).contains(&number), "{number}");
    others_go_on();
}
