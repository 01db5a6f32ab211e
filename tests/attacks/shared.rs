//! What the host reads of a machine, while it is read: the directory of its agent above all.

use std::os::unix::net::UnixListener;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nspawn_common::machine::name::MachineName;
use nspawn_common::machine::paths::MachinePaths;
use nspawn_common::machine::processes;
use nspawn_tests::{Machine, call, left_of, sh};

use crate::network::Server;
use crate::suite::{Control, Field, Outside, Suite, machine};

/// What takes the place of the agent's socket, or of its directory, in `/run/nspawn-ci`.
const PLACES: [(&str, &str); 8] = [
    (
        "a link to a socket of the host in place of the agent's",
        "ln -sf OUTSIDE/socket agent/socket",
    ),
    (
        "a link to a file of the host in place of the agent's socket",
        "ln -sf OUTSIDE/secret agent/socket",
    ),
    (
        "a pipe in place of the agent's socket",
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
        "a pipe in place of the agent's directory",
        "mv agent old && mkfifo agent",
    ),
    (
        "a link to another machine's directory in place of the agent's",
        "mv agent old && ln -s NEIGHBOUR agent",
    ),
];
/// How long nspawn-run may take to say that there is no agent, in seconds.
const LIMIT: &str = "6";

/// Changes both back and forth for as long as it lives.
const FLICKER: &str = r#"
chdir "/run/nspawn-ci" or die;
symlink $ARGV[0], "trap" or die;
symlink "$ARGV[0]/socket", "link" or die;
while (1) {
    rename "agent", "kept"; rename "trap", "agent"; rename "agent", "trap"; rename "kept", "agent";
    rename "agent/socket", "agent/kept"; rename "link", "agent/socket"; rename "agent/socket", "link"; rename "agent/kept", "agent/socket";
}
"#;

pub fn rows(suite: &mut Suite, field: &Field) {
    for (name, script) in PLACES {
        suite.row(name, || nothing_else_is_reached(field, script));
    }
    suite.row("both, back and forth, under a running nspawn-run", || {
        let (machine, outside) = (machine(&[]), Trap::new());
        flicker(&machine, &outside);
        let deadline = Instant::now() + Duration::from_secs(3);
        while Instant::now() < deadline {
            run(&machine);
        }
        outside.is_whole();
        Control::Nowhere
    });
    for size in ["--layer-size=50%", "--layer-size=infinity"] {
        suite.row(
            &format!("both, back and forth, under a running nspawn-cleanup, {size}"),
            || {
                let (machine, outside) = (machine(&[size]), Trap::new());
                flicker(&machine, &outside);
                call("nspawn-cleanup", [&machine.name]).expect(0);
                assert_eq!(left_of(&machine.name), "");
                outside.is_whole();
                Control::Nowhere
            },
        );
    }
    suite.row(
        "filling the host's memory through what it shows in run",
        filled_memory_is_bounded,
    );
}

/// A directory of the host where somebody listens to whom nobody shall talk.
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
    fn is_whole(&self) {
        assert!(
            !self.server.was_reached(),
            "a socket of the host was connected to"
        );
        assert_eq!(self.outside.state(), self.before);
    }
}

fn nothing_else_is_reached(field: &Field, script: &str) -> Control {
    let (machine, trap) = (machine(&[]), Trap::new());
    let script = script.replace("OUTSIDE", &trap.outside.path.to_string_lossy());
    let script = script.replace("NEIGHBOUR", &agent_directory(&field.neighbour));
    machine
        .sh(&format!("cd /run/nspawn-ci && {script}"))
        .expect(0);
    run(&machine);
    call("nspawn-cleanup", [&machine.name]).expect(0);
    assert_eq!(left_of(&machine.name), "");
    trap.is_whole();
    let mark = field
        .neighbour
        .sh(&format!("test ! -e /root/mark-of-{}", machine.name));
    assert_eq!(mark.code(), 0, "another machine ran its command");
    Control::Nowhere
}

// Where it is in the host's eyes; a machine has to guess the number.
fn agent_directory(machine: &Machine) -> String {
    let paths = MachinePaths::named(&MachineName::new(&machine.name).unwrap());
    format!(
        "/proc/{}/root{}",
        processes::supervisor(&paths).unwrap(),
        paths.agent_dir().display()
    )
}

// It leaves a mark where it runs.
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

fn filled_memory_is_bounded() -> Control {
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
        "it fills nothing, so it proves nothing: {}",
        done.describe()
    );
    assert!(
        used() < before + (8 << 10),
        "{} KiB of {before} are used",
        used()
    );
    Control::Nowhere
}
