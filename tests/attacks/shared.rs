//! The files of a machine that the host's programs use, above all the directory of its agent.

use std::os::unix::net::UnixListener;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nspawn_tests::{Machine, call, left_of, sh};

use crate::network::Server;
use crate::suite::{Control, Fixture, Outside, Suite, machine};

/// Replacements of the agent's socket or directory, and commands that create them in
/// `/run/nspawn-ci`.
const REPLACEMENTS: [(&str, &str); 8] = [
    (
        "a link to a socket of the host in place of the agent's",
        "ln -sf OUTSIDE/socket agent/socket",
    ),
    (
        "a link to a file of the host in place of the agent's socket",
        "ln -sf OUTSIDE/secret agent/socket",
    ),
    (
        "a FIFO in place of the agent's socket",
        "rm agent/socket && mkfifo agent/socket",
    ),
    (
        "a directory in place of the agent's socket",
        "rm agent/socket && mkdir -p agent/socket/socket",
    ),
    (
        "a file in place of the agent's socket",
        "rm agent/socket && echo evil >agent/socket",
    ),
    (
        "a link to a directory of the host in place of the agent's",
        "mv agent old && ln -s OUTSIDE agent",
    ),
    (
        "a FIFO in place of the agent's directory",
        "mv agent old && mkfifo agent",
    ),
    (
        "a link to another machine's directory in place of the agent's",
        "mv agent old && ln -s NEIGHBOUR agent",
    ),
];
/// Time limit for the error of nspawn-run, in seconds.
const LIMIT: &str = "6";

/// Swaps the agent's directory and socket with links to the host, all the time.
const FLICKER: &str = r#"
chdir "/run/nspawn-ci" or die;
symlink $ARGV[0], "trap" or die;
symlink "$ARGV[0]/socket", "link" or die;
while (1) {
    rename "agent", "kept"; rename "trap", "agent"; rename "agent", "trap"; rename "kept", "agent";
    rename "agent/socket", "agent/kept"; rename "link", "agent/socket"; rename "agent/socket", "link"; rename "agent/kept", "agent/socket";
}
"#;

pub fn rows(suite: &mut Suite, fixture: &Fixture) {
    for (name, script) in REPLACEMENTS {
        suite.row(name, || host_programs_stay_in_the_machine(fixture, script));
    }
    suite.row(
        "swapping the agent's socket and directory under nspawn-run",
        || {
            let (machine, outside) = (machine(&[]), Trap::new());
            flicker(&machine, &outside);
            let deadline = Instant::now() + Duration::from_secs(3);
            while Instant::now() < deadline {
                run(&machine);
            }
            outside.assert_untouched();
            Control::Absent
        },
    );
    for size in ["--layer-size=50%", "--layer-size=infinity"] {
        suite.row(
            &format!("swapping the agent's socket and directory under nspawn-cleanup, {size}"),
            || {
                let (machine, outside) = (machine(&[size]), Trap::new());
                flicker(&machine, &outside);
                call("nspawn-cleanup", [&machine.name]).expect(0);
                assert_eq!(left_of(&machine.name), "");
                outside.assert_untouched();
                Control::Absent
            },
        );
    }
    suite.row(
        "filling the host's memory by writing to its mounts in /run",
        memory_for_mounts_is_limited,
    );
}

/// A directory of the host with a socket. Neither may be touched.
struct Trap {
    outside: Outside,
    server: Server,
    before: String,
}

impl Trap {
    fn new() -> Self {
        let outside = Outside::new();
        let server = Server::unix(UnixListener::bind(outside.path.join("socket")).unwrap(), "");
        let before = outside.state();
        Self {
            outside,
            server,
            before,
        }
    }

    #[track_caller]
    fn assert_untouched(&self) {
        assert!(
            !self.server.was_reached(),
            "a program connected to a socket of the host"
        );
        assert_eq!(self.outside.state(), self.before);
    }
}

fn host_programs_stay_in_the_machine(fixture: &Fixture, script: &str) -> Control {
    let (machine, trap) = (machine(&[]), Trap::new());
    let script = script.replace("OUTSIDE", &trap.outside.path.to_string_lossy());
    let script = script.replace("NEIGHBOUR", &agent_directory(&fixture.neighbour));
    machine
        .sh(&format!("cd /run/nspawn-ci && {script}"))
        .expect(0);
    run(&machine);
    call("nspawn-cleanup", [&machine.name]).expect(0);
    assert_eq!(left_of(&machine.name), "");
    trap.assert_untouched();
    let mark = fixture
        .neighbour
        .sh(&format!("test ! -e /root/mark-of-{}", machine.name));
    assert_eq!(mark.code(), 0, "another machine ran its command");
    Control::Absent
}

/// Returns the path of the agent's directory on the host. A machine would have to guess the number.
fn agent_directory(machine: &Machine) -> String {
    let path = machine.path_at_supervisor(&machine.paths().agent_dir());
    path.display().to_string()
}

/// Runs a command that leaves a file where it runs.
#[track_caller]
fn run(machine: &Machine) {
    let mark = format!("/root/mark-of-{}", machine.name);
    let done = call(
        "timeout",
        [LIMIT, "nspawn-run", &machine.name, "touch", &mark],
    );
    assert!([0, 125].contains(&done.code()), "{}", done.describe());
}

fn flicker(machine: &Machine, trap: &Trap) {
    let path = trap.outside.path.to_string_lossy();
    let started = machine
        .command(["systemd-run", "--quiet", "perl", "-e", FLICKER, &path])
        .stdin(Stdio::null())
        .status();
    assert!(started.unwrap().success());
    std::thread::sleep(Duration::from_millis(200));
}

fn memory_for_mounts_is_limited() -> Control {
    let used = || -> u64 {
        sh("df --output=used -k /run | tail -n 1")
            .expect(0)
            .out()
            .trim()
            .parse()
            .unwrap()
    };
    let (machine, before) = (machine(&[]), used());
    let fill = "for there in /run/host /run/host/* /run/nspawn-ci /run/nspawn-ci/agent; do dd if=/dev/zero of=$there/full bs=1M count=64; done";
    let done = machine.sh(&format!("{{ {fill}; }} 2>&1"));
    assert!(
        done.out().contains("No space left"),
        "the command fills no mount, so the attack proves nothing: {}",
        done.describe()
    );
    assert!(
        used() < before + (8 << 10),
        "{} KiB of /run are used, {before} KiB before",
        used()
    );
    Control::Absent
}
