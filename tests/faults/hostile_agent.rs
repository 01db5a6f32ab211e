//! The agent is killed, stopped, or replaced by a hostile program. The job may lose its own result
//! by that. The host gets a clear error in time, and loses nothing.

use std::fs::{self, File};
use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nspawn_common::agent::protocol;
use nspawn_common::agent::request::Request;
use nspawn_common::machine::paths::{AGENT_MOUNT_IN_MACHINE, AGENT_SOCKET};
use nspawn_common::text;
use nspawn_tests::{BackgroundCommand, Machine, call, random};

use crate::suite::{Suite, machine};

/// Option that makes this program a hostile agent, in a machine.
pub const OPTION: &str = "--hostile-agent";

/// Path of this program in the machine.
const PROGRAM_IN_MACHINE: &str = "/run/hostile-agent";
/// File beside the agent's socket that the hostile agent creates once it listens.
const READY_FILE: &str = "hostile-agent-ready";
/// Limit for the memory of nspawn-run under a hostile agent, in KiB.
const MOST_MEMORY: u64 = 20_000;

/// A behaviour of a hostile agent, a part of nspawn-run's error, and the time limit for it in
/// seconds.
type Behaviour = (&'static str, &'static str, u64);

const FAST_BEHAVIOURS: [Behaviour; 4] = [
    ("garbage", "too long", 15),
    ("flood", "unknown message", 15),
    ("long", "too long", 15),
    ("short", "result of 2 bytes", 15),
];

/// nspawn-run waits half a minute for the start of a command.
const SLOW_BEHAVIOURS: [Behaviour; 4] = [
    ("hangup", "runs, but its agent no longer answers", 28),
    ("silence", "does not answer", 60),
    ("drip", "does not answer", 60),
    ("SIGSTOP", "does not answer", 60),
];

pub fn rows(suite: &mut Suite) {
    suite.row(
        "the agent is killed under a command, and systemd restarts it",
        suite.times(2, 20),
        |_| {
            let machine = machine(&[]);
            let running = BackgroundCommand::start(&machine, "echo on; sleep 600");
            // The command that kills the agent may succeed, or lose its own result.
            machine.sh(&format!("kill -KILL {AGENT}"));
            let (done, took) = running.wait_timed();
            let (code, stderr) = (done.status.code(), done.err());
            assert_eq!(code, Some(125), "{stderr}");
            assert!(
                stderr.contains("its agent ended") && took < Duration::from_secs(5),
                "{stderr:?} after {took:?}"
            );
            machine.run(["true"]).expect(0);
        },
    );
    if suite.is_long {
        suite.row(
            "the agent's process for a command is stopped by SIGSTOP",
            1,
            |_| {
                let machine = machine(&[]);
                let script = "echo on; kill -STOP $PPID; sleep 600";
                let (done, took) = BackgroundCommand::start(&machine, script).wait_timed();
                let (code, stderr) = (done.status.code(), done.err());
                assert_eq!(code, Some(125), "{stderr}");
                assert!(
                    stderr.contains("does not answer") && took < Duration::from_secs(130),
                    "{stderr:?} after {took:?}"
                );
            },
        );
        suite.row("the machine is frozen for three minutes", 1, |_| {
            let machine = machine(&[]);
            let running = BackgroundCommand::start(&machine, "echo on; sleep 1; exit 7");
            let unit = format!("nspawn-{}.service", machine.name);
            call("systemctl", ["freeze", &unit]).expect(0);
            thread::sleep(Duration::from_secs(180));
            call("systemctl", ["thaw", &unit]).expect(0);
            assert_eq!(running.wait().status.code(), Some(7));
        });
    }
    for behaviour in FAST_BEHAVIOURS {
        suite.row(&format!("a hostile agent: {}", behaviour.0), 1, |_| {
            expect_error(&machine_with_hostile_agent(behaviour.0), &behaviour);
        });
    }
    suite.row_at_once(
        "hostile agents that do not answer: hangup, silence, drip, SIGSTOP",
        &SLOW_BEHAVIOURS,
        |behaviour| {
            if behaviour.0 != "SIGSTOP" {
                expect_error(&machine_with_hostile_agent(behaviour.0), behaviour);
                return;
            }
            let machine = machine(&[]);
            machine.sh(&format!("kill -STOP {AGENT}")).expect(0);
            expect_error(&machine, behaviour);
            nspawn_tests::sh("pkill -CONT -f 'nspawn-run --agent'").expect(0);
            machine.run(["true"]).expect(0);
        },
    );
    suite.row("a hostile agent sends file descriptors", 1, |_| {
        let machine = machine_with_hostile_agent("descriptors");
        let running = BackgroundCommand::spawn(&machine, "true");
        thread::sleep(Duration::from_millis(700));
        let open = fs::read_dir(format!("/proc/{}/fd", running.pid()))
            .unwrap()
            .count();
        assert!(open < 30, "{open} descriptors are open");
        // The agent decides the result of a command, which is the job's own.
        assert_eq!(running.wait().status.code(), Some(3));
    });
    let minutes = suite.times(0, 10);
    suite.row(
        &format!(
            "random changes to messages, for {} s",
            (60 * minutes).max(2)
        ),
        1,
        |_| {
            let deadline = Instant::now() + Duration::from_secs(u64::from(60 * minutes).max(2));
            for round in 0.. {
                if Instant::now() > deadline {
                    break;
                }
                decode_changed_messages(round);
            }
        },
    );
}

/// Shell expression for the agent's main process.
const AGENT: &str = "$(systemctl show --property=MainPID --value nspawn-agent)";

/// Creates a machine, and replaces its agent by this program.
fn machine_with_hostile_agent(behaviour: &str) -> Machine {
    let program = std::env::current_exe().unwrap();
    let machine = machine(&[&format!(
        "--bind-ro={}:{PROGRAM_IN_MACHINE}",
        program.display()
    )]);
    let replace =
        format!("systemctl stop nspawn-agent; exec {PROGRAM_IN_MACHINE} {OPTION} {behaviour}");
    machine.run(["systemd-run", "--quiet", "--no-block", "sh", "-c", &replace]);
    // The directory is mounted in the mount namespace of the machine's unit only.
    let ready_file = machine.path_at_supervisor(&machine.paths().agent_dir().join(READY_FILE));
    let deadline = Instant::now() + Duration::from_secs(20);
    while !fs::exists(&ready_file).unwrap() {
        assert!(
            Instant::now() < deadline,
            "the hostile agent does not start"
        );
        thread::sleep(Duration::from_millis(20));
    }
    machine
}

/// Runs a command in the machine, and checks that nspawn-run fails as it should.
fn expect_error(machine: &Machine, (_, words, limit): &Behaviour) {
    let running = BackgroundCommand::spawn(machine, "true");
    let memory = watch_memory(running.pid());
    let (done, took) = running.wait_timed();
    let (code, stderr) = (done.status.code(), done.err());
    assert_eq!(code, Some(125), "{stderr}");
    assert!(
        stderr.contains(words) && took < Duration::from_secs(*limit),
        "{stderr:?} after {took:?}"
    );
    let memory = memory.join().unwrap();
    assert!(memory < MOST_MEMORY, "{memory} KiB");
}

/// Returns the peak of the memory of a process, in KiB, once it ends.
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

/// Serves as the agent of a machine, in a hostile way.
pub fn serve(behaviour: &str) -> ! {
    let socket = Path::new(AGENT_MOUNT_IN_MACHINE).join(AGENT_SOCKET);
    let _ = fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).unwrap();
    File::create(socket.with_file_name(READY_FILE)).unwrap();
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let _ = answer(behaviour, &mut stream);
        if behaviour != "hangup" {
            // The connection stays open, so that the host sees no end of it.
            std::mem::forget(stream);
        }
    }
    unreachable!()
}

fn answer(behaviour: &str, stream: &mut UnixStream) -> std::io::Result<()> {
    if behaviour == "hangup" {
        return Ok(());
    }
    let mut header = [0; protocol::HEADER];
    stream.read_exact(&mut header)?;
    let started = protocol::frame(protocol::STARTED, &[]);
    match behaviour {
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

/// Decodes messages with random changes. The decoders must not panic, nor take more than there is.
fn decode_changed_messages(round: u64) {
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
    let mut consumed = 0;
    while let Ok(Some((_, body))) = protocol::take_frame(&mut bytes, protocol::MAX_ANSWER) {
        consumed += protocol::HEADER + body.len();
    }
    assert_eq!(consumed + bytes.len(), length);
    assert!(text::printable(&bytes).chars().all(|c| !c.is_control()));
}
