//! The agent is killed, stopped, or replaced by one that lies. The job may lose its own result by
//! that; the host gets a clear end, and loses nothing.

use std::fs::{self, File};
use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nspawn_common::agent::protocol::{self, Request};
use nspawn_common::machine::paths::{AGENT_MOUNT_IN_MACHINE, AGENT_SOCKET, MachinePaths};
use nspawn_tests::{Machine, call, random};

use crate::suite::{Running, Suite, machine};

/// What asks this program to be the liar, inside a machine.
pub const OPTION: &str = "--liar";

/// Where the machine is shown this program.
const PROGRAM_IN_MACHINE: &str = "/run/liar";
/// The most memory that nspawn-run may take for any liar, in KiB.
const MOST_MEMORY: u64 = 20_000;

/// How it lies, what nspawn-run says, and how long that may take: half a minute where it waits for a
/// command's start.
const LIES: [(&str, &str, u64); 7] = [
    ("garbage", "too long", 2),
    ("flood", "unknown message", 2),
    ("long", "too long", 2),
    ("short", "result of 2 bytes", 2),
    ("hangup", "does not answer any more, but runs", 8),
    ("silence", "does not answer", 35),
    ("drip", "does not answer", 35),
];

pub fn rows(suite: &mut Suite) {
    suite.row(
        "the agent is killed under a command, and comes back",
        suite.times(2, 20),
        |_| {
            let machine = machine(&[]);
            let running = Running::start(&machine, "echo on; sleep 600");
            // It dies of it itself, or is faster.
            machine.sh(&format!("kill -KILL {AGENT}"));
            let (code, said, took) = running.end();
            assert_eq!(code, Some(125), "{said}");
            assert!(
                said.contains("its agent was ended") && took < Duration::from_secs(5),
                "{said:?} after {took:?}"
            );
            machine.run(["true"]).expect(0);
        },
    );
    suite.row("the agent is stopped, and goes on", 1, |_| {
        let machine = machine(&[]);
        machine.sh(&format!("kill -STOP {AGENT}")).expect(0);
        let (code, said, took) = Running::begin(&machine, "true").end();
        assert_eq!(code, Some(125), "{said}");
        assert!(
            said.contains("does not answer") && took < Duration::from_secs(35),
            "{said:?} after {took:?}"
        );
        nspawn_tests::sh("pkill -CONT -f 'nspawn-run --agent'").expect(0);
        machine.run(["true"]).expect(0);
    });
    if suite.is_long {
        suite.row("what looks after a command is stopped", 1, |_| {
            let machine = machine(&[]);
            let (code, said, took) =
                Running::start(&machine, "echo on; kill -STOP $PPID; sleep 600").end();
            assert_eq!(code, Some(125), "{said}");
            assert!(
                said.contains("does not answer") && took < Duration::from_secs(130),
                "{said:?} after {took:?}"
            );
        });
        suite.row("a machine that is frozen for three minutes", 1, |_| {
            let machine = machine(&[]);
            let running = Running::start(&machine, "echo on; sleep 1; exit 7");
            let unit = format!("nspawn-{}.service", machine.name);
            call("systemctl", ["freeze", &unit]).expect(0);
            thread::sleep(Duration::from_secs(180));
            call("systemctl", ["thaw", &unit]).expect(0);
            assert_eq!(running.end().0, Some(7));
        });
    }
    for (lie, words, limit) in LIES {
        suite.row(&format!("an agent that lies: {lie}"), 1, |_| {
            let machine = machine_with_liar(lie);
            let running = Running::begin(&machine, "true");
            let memory = watch_memory(running.pid());
            let (code, said, took) = running.end();
            assert_eq!(code, Some(125), "{said}");
            assert!(
                said.contains(words) && took < Duration::from_secs(limit),
                "{said:?} after {took:?}"
            );
            let memory = memory.join().unwrap();
            assert!(memory < MOST_MEMORY, "{memory} KiB");
        });
    }
    suite.row("an agent that sends descriptors", 1, |_| {
        let machine = machine_with_liar("descriptors");
        let running = Running::begin(&machine, "true");
        thread::sleep(Duration::from_millis(700));
        let open = fs::read_dir(format!("/proc/{}/fd", running.pid()))
            .unwrap()
            .count();
        assert!(open < 30, "{open} descriptors are open");
        // Its word is the job's own result.
        assert_eq!(running.end().0, Some(3));
    });
    let minutes = suite.times(0, 10);
    suite.row(
        &format!("broken messages, for {} s", (60 * minutes).max(2)),
        1,
        |_| {
            let deadline = Instant::now() + Duration::from_secs(u64::from(60 * minutes).max(2));
            for round in 0.. {
                if Instant::now() > deadline {
                    break;
                }
                break_messages(round);
            }
        },
    );
}

/// The agent's main process.
const AGENT: &str = "$(systemctl show --property=MainPID --value nspawn-agent)";

fn machine_with_liar(lie: &str) -> Machine {
    let own = std::env::current_exe().unwrap();
    let machine = machine(&[&format!("--bind-ro={}:{PROGRAM_IN_MACHINE}", own.display())]);
    let replace = format!("systemctl stop nspawn-agent; exec {PROGRAM_IN_MACHINE} {OPTION} {lie}");
    machine.run(["systemd-run", "--quiet", "--no-block", "sh", "-c", &replace]);
    let name = nspawn_common::machine::name::MachineName::new(&machine.name).unwrap();
    let paths = MachinePaths::named(&name);
    // Mounted for the machine's unit alone.
    let supervisor = nspawn_common::machine::processes::supervisor(&paths).unwrap();
    let mark = format!(
        "/proc/{supervisor}/root{}/lies",
        paths.agent_dir().display()
    );
    let deadline = Instant::now() + Duration::from_secs(20);
    while !fs::exists(&mark).unwrap() {
        assert!(Instant::now() < deadline, "the liar does not start");
        thread::sleep(Duration::from_millis(20));
    }
    machine
}

fn watch_memory(pid: u32) -> thread::JoinHandle<u64> {
    thread::spawn(move || {
        let mut most = 0;
        while let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) {
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let Some(size) = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok())
            else {
                break;
            };
            most = most.max(size);
            thread::sleep(Duration::from_millis(2));
        }
        most
    })
}

/// Is the agent that lies. Never returns.
pub fn lie(how: &str) -> ! {
    let socket = Path::new(AGENT_MOUNT_IN_MACHINE).join(AGENT_SOCKET);
    let _ = fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).unwrap();
    File::create(socket.with_file_name("lies")).unwrap();
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let _ = answer(how, &mut stream);
        if how != "hangup" {
            // Kept open, or the host would learn of an end.
            std::mem::forget(stream);
        }
    }
    unreachable!()
}

fn answer(how: &str, stream: &mut UnixStream) -> std::io::Result<()> {
    if how == "hangup" {
        return Ok(());
    }
    let mut header = [0; protocol::HEADER];
    stream.read_exact(&mut header)?;
    let started = protocol::frame(protocol::STARTED, &[]);
    match how {
        "garbage" => stream.write_all(&[0xff; 4096]),
        "flood" => loop {
            stream.write_all(&started.repeat(1000))?;
        },
        "long" => stream.write_all(
            &[
                &started[..],
                &[protocol::EXITED, 0xff, 0xff, 0xff, 0xff],
                &[0; 100_000],
            ]
            .concat(),
        ),
        "short" => {
            stream.write_all(&[started, protocol::frame(protocol::EXITED, &[0, 0])].concat())
        }
        "drip" => loop {
            stream.write_all(&[protocol::STARTED])?;
            thread::sleep(Duration::from_secs(10));
        },
        "descriptors" => {
            let null = File::open("/dev/null")?;
            let fds: Vec<RawFd> = vec![null.as_raw_fd(); 250];
            for byte in &started {
                let descriptors = [ControlMessage::ScmRights(&fds)];
                sendmsg::<()>(
                    stream.as_raw_fd(),
                    &[IoSlice::new(&[*byte])],
                    &descriptors,
                    MsgFlags::empty(),
                    None,
                )?;
            }
            thread::sleep(Duration::from_millis(1500));
            stream.write_all(&protocol::frame(protocol::EXITED, &[3]))
        }
        _ => Ok(()),
    }
}

// None may panic, or be taken for more than it is.
fn break_messages(round: u64) {
    let mut bytes = random(1 + (round % 300) as usize, round);
    if round % 3 > 0 {
        let whole = Request::decode(&protocol::frame(b'a', b"x"))
            .unwrap()
            .encode();
        bytes = [
            protocol::frame(protocol::RUN, &whole),
            protocol::frame(protocol::EXITED, &[7]),
        ]
        .concat();
        let at = random(4, round);
        for pair in at.chunks(2) {
            let place = usize::from(pair[0]) % bytes.len();
            bytes[place] = pair[1];
        }
        bytes.truncate(1 + usize::from(at[3]) % bytes.len());
    }
    let _ = Request::decode(&bytes);
    let _ = protocol::read_frame(&mut &*bytes, protocol::MAX_ANSWER);
    let length = bytes.len();
    let mut taken = 0;
    while let Ok(Some((_, body))) = protocol::take_frame(&mut bytes, protocol::MAX_ANSWER) {
        taken += protocol::HEADER + body.len();
    }
    assert_eq!(taken + bytes.len(), length);
    assert!(protocol::printable(&bytes).chars().all(|c| !c.is_control()));
}
