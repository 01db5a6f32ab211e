//! Things of which the kernel has only so many. A job takes all that it can get, and other machines
//! and the host go on.

use std::fs;

use nix::libc;
use nspawn_tests::{BackgroundCommand, Done, Machine, call, left_of, sh};

/// Limits of a user that are small enough to be reached soon, by the names in `/proc/sys/user`.
const LIMITS: [(&str, &str); 4] = [
    ("max_mnt_namespaces", "400"),
    ("max_net_namespaces", "100"),
    ("max_uts_namespaces", "400"),
    ("max_ipc_namespaces", "400"),
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
sleep 60;
"#;

/// Creates cgroups with the memory controller, of whose numbers the kernel has 65535, and prints
/// how many.
const MEMORY_CGROUPS: &str = "cd /sys/fs/cgroup && mkdir pool && cd pool && echo +memory >cgroup.subtree_control && \
    for i in $(seq 5000); do mkdir $i 2>/dev/null || break; done; ls -d [0-9]* | wc -l; rmdir [0-9]* && rmdir ../pool";

/// Values of [`LIMITS`] on this host, which are set again when this is dropped.
struct Sysctls(Vec<(String, String)>);

impl Sysctls {
    fn lower() -> Self {
        let values = LIMITS.map(|(name, value)| {
            let path = format!("/proc/sys/user/{name}");
            let before = fs::read_to_string(&path).unwrap();
            fs::write(&path, value).unwrap();
            (path, before)
        });
        Self(values.into())
    }
}

impl Drop for Sysctls {
    fn drop(&mut self) {
        for (path, value) in &self.0 {
            let _ = fs::write(path, value);
        }
    }
}

fn attack() -> String {
    let script = NAMESPACES.replace("$ARGV[0]", &libc::SYS_unshare.to_string());
    format!("exec timeout 300 prlimit --nofile=20000 perl -e '{script}'")
}

fn start_unit() -> Done {
    sh("systemd-run --quiet --wait --property=PrivateMounts=yes true")
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
    let _sysctls = Sysctls::lower();
    let host =
        BackgroundCommand::start_command(std::process::Command::new("sh").args(["-c", &attack()]));
    let unit = start_unit();
    host.signal("TERM");
    let _ = host.wait();
    assert_ne!(
        unit.code(),
        0,
        "the attack fails on the host, so it proves nothing"
    );
    // The kernel destroys namespaces some time after their last process has ended.
    nspawn_tests::wait_until("a unit starts", std::time::Duration::from_secs(60), || {
        start_unit().code() == 0
    });
    let attack = BackgroundCommand::start(&machine, &attack());
    others_go_on();
    attack.signal("TERM");
    let done = attack.wait();
    assert!(done.out().contains("mnt: "), "{}", done.describe());
}

#[test]
fn cgroups_of_a_job_leave_the_host_most_numbers() {
    let machine = Machine::with(&["--network=none"]);
    let done = machine.sh(MEMORY_CGROUPS).expect(0);
    let number: usize = done.out().trim().parse().unwrap();
    assert!((1000..=2048).contains(&number), "{number}");
    others_go_on();
}
