//! Processes of the host and of other machines.

use std::process::Stdio;

use nix::libc;
use nspawn_tests::Machine;

use crate::probe::{Place, Probe};
use crate::suite::{Control, Fixture, Suite, Victim, machine, name};

/// Searches for a process by its command line.
const SEE: &str = r#"
# The word stands apart, so that this script does not match itself.
grep -lsz "^victim-$1" /proc/[0-9]*/cmdline | grep -q . && got_in seen
kept_out 'not seen'
"#;

/// Attacks a process by its number on the host. No process of a young machine has such a number.
const REACH: &str = r#"
my ($process, $ptrace, $pidfd, $read, $descriptor) = @ARGV;
sub try { my ($name, $done) = @_; got_in $name if $done; $why .= "$name: $! " }
my $buffer = "\0" x 64;
my ($here, $there) = (pack("PQ", $buffer, 8), pack("Q2", 4096, 8));
try "kill", kill(0, $process) || $!{EPERM};
try "pidfd_open", syscall($pidfd, $process + 0, 0) >= 0;
try "ptrace", syscall($ptrace, 16, $process + 0, 0, 0) == 0;
try "memory", open(my $memory, "<", "/proc/$process/mem");
try "process_vm_readv", syscall($read, $process + 0, $here, 1, $there, 1, 0) >= 0;
kept_out $why;
"#;

/// Kills all processes that the caller may kill.
const KILL: &str = "kill -s KILL -- -1";

/// Kills every process number, except for those of the machine.
const SIGNAL_ALL: &str = r#"
my $most = do { local @ARGV = "/proc/sys/kernel/pid_max"; <> + 0 };
my %own = map { m(/proc/(\d+)) => 1 } glob("/proc/[0-9]*"), glob("/proc/[0-9]*/task/[0-9]*");
for (1 .. $most > 4194304 ? 4194304 : $most) { kill(9, $_) if !$own{$_} && $_ != $$ }
kept_out "unless a victim is dead";
"#;

/// Enters the namespaces of a process, and looks for a file of the host.
const NAMESPACES: &str = r#"
for process in "$1" 1 $(ls /proc | grep '^[0-9]'); do
    attempt nsenter --target "$process" --mount --ipc --uts --net test -e "$2" && got_in "process $process"
    attempt nsenter --target "$process" --mount test -e "$2" && got_in "process $process"
done
kept_out "$why"
"#;

/// Looks for a segment of System V shared memory.
const SHARED_MEMORY: &str = r#"
grep -q "^ *$1 " /proc/sysvipc/shm && got_in listed
kept_out 'not listed'
"#;

pub fn rows(suite: &mut Suite, fixture: &Fixture) {
    let word = name();
    suite.row("seeing processes of the host", || {
        let victim = Victim::new(&format!("victim-{word}"));
        let probe = Probe::shell(SEE, &[&word]);
        probe.gets_in(Place::Host);
        probe.is_kept_out(&fixture.attacker);
        drop(victim);
        Control::Host
    });
    suite.row("seeing processes of another machine", || {
        let word = name();
        let script = format!("exec -a victim-{word} sleep 60");
        let mut sleeper = fixture
            .neighbour
            .command(["bash", "-c", &script])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let probe = Probe::shell(SEE, &[&word]);
        wait_until_seen(&fixture.neighbour, &word);
        probe.gets_in(Place::Host);
        probe.gets_in(Place::Machine(&fixture.neighbour));
        probe.is_kept_out(&fixture.attacker);
        sleeper.kill().and_then(|()| sleeper.wait()).unwrap();
        Control::Host
    });
    suite.row(
        "signalling, tracing and reading a process of the host by its number",
        || {
            let mut victim = Victim::new(&name());
            let probe = reach(victim.pid());
            probe.gets_in(Place::Host);
            probe.is_kept_out(&fixture.attacker);
            assert!(victim.is_alive());
            Control::Host
        },
    );
    suite.row(
        "killing all processes: kill(-1), and every process number",
        || {
            let (attacker, mut victim) = (machine(&[]), Victim::new(&name()));
            Probe::perl(SIGNAL_ALL, &[]).is_kept_out(&attacker);
            // The machine's agent is killed too.
            attacker.sh(KILL).expect(125);
            assert!(victim.is_alive());
            for other in [&fixture.attacker, &fixture.neighbour, &fixture.unconfined] {
                other.run(["true"]).expect(0);
            }
            Control::Absent
        },
    );
    suite.row("entering namespaces of the host's processes", || {
        let (victim, path) = (Victim::new(&name()), std::env::current_exe().unwrap());
        let probe = Probe::shell(
            NAMESPACES,
            &[&victim.pid().to_string(), &path.to_string_lossy()],
        );
        probe.gets_in(Place::Host);
        probe.is_kept_out(&fixture.attacker);
        Control::Host
    });
    suite.row("seeing the host's shared memory", || {
        shared_memory_is_hidden(fixture)
    });
}

fn reach(process: u32) -> Probe {
    let numbers = [
        libc::SYS_ptrace,
        libc::SYS_pidfd_open,
        libc::SYS_process_vm_readv,
    ]
    .map(|number| number.to_string());
    let process = process.to_string();
    Probe::perl(
        REACH,
        &[&[&*process], &numbers.each_ref().map(String::as_str)[..]].concat(),
    )
}

fn wait_until_seen(machine: &Machine, word: &str) {
    let wait = format!(
        "for i in $(seq 100); do grep -qsz '^victim-{word}' /proc/[0-9]*/cmdline && exit; sleep 0.05; done; exit 1"
    );
    machine.sh(&wait).expect(0);
}

fn shared_memory_is_hidden(fixture: &Fixture) -> Control {
    let key = i32::try_from(std::process::id()).unwrap();
    // SAFETY: shmget(2) and shmctl(2) take numbers, and IPC_RMID no pointer.
    let segment = unsafe { libc::shmget(key, 4096, libc::IPC_CREAT | 0o666) };
    assert!(segment >= 0, "{}", std::io::Error::last_os_error());
    let probe = Probe::shell(SHARED_MEMORY, &[&key.to_string()]);
    let proved = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        probe.gets_in(Place::Host);
        probe.is_kept_out(&fixture.attacker);
    }));
    // SAFETY: as above.
    unsafe { libc::shmctl(segment, libc::IPC_RMID, std::ptr::null_mut()) };
    assert!(proved.is_ok());
    Control::Host
}
