//! Network namespace in which the server listens, so that it is outside of the host.
//!
//! A real GitLab is outside of the host too, and the machines of jobs can't reach the host's own
//! addresses. A pair of veth links joins the namespace to the host's. The namespace has no name, so
//! the kernel removes it, and with it the links, some time after its last socket was closed. Nothing
//! remains of it even if the tests are killed, and nothing else may remove a link: by then, another
//! server may have a link of that name.

use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::gettid;

use crate::command::finish;

const PORT: u16 = 80;

/// Creates a network namespace, and returns a listener in it and the address at which it listens.
pub fn listener_outside() -> (TcpListener, Ipv4Addr) {
    let (to_inside, from_outside) = channel();
    let (to_outside, from_inside) = channel();
    let inside = thread::spawn(move || listen(&to_outside, &from_outside));
    let thread = from_inside
        .recv()
        .unwrap_or_else(|_| panic!("can't create a network namespace"));
    let (link, address) = join(&thread);
    // The host's side of the link needs no address, and an address would have to be kept from the
    // machines.
    ip(&format!("link set {link} up"));
    ip(&format!("route add {address}/32 dev {link}"));
    let _ = to_inside.send(address);
    let listener = inside
        .join()
        .unwrap_or_else(|_| panic!("can't listen at {address}"));
    (listener, address)
}

// This runs in a thread of its own, because only that thread enters the namespace.
fn listen(to_outside: &Sender<String>, from_outside: &Receiver<Ipv4Addr>) -> TcpListener {
    unshare(CloneFlags::CLONE_NEWNET).unwrap_or_else(|error| panic!("unshare: {error}"));
    let _ = to_outside.send(gettid().to_string());
    let address = from_outside
        .recv()
        .unwrap_or_else(|error| panic!("{error}"));
    for command in [
        "link set lo up".to_owned(),
        format!("address add {address}/32 dev outside"),
        "link set outside up".to_owned(),
        "route add default dev outside".to_owned(),
    ] {
        ip(&command);
    }
    TcpListener::bind((address, PORT)).unwrap_or_else(|error| panic!("{address}: {error}"))
}

// The name of the link reserves the address of the same number. The addresses are those for
// documentation (RFC 5737).
fn join(thread: &str) -> (String, Ipv4Addr) {
    let first = u8::try_from(std::process::id() % 256).unwrap_or(0);
    for count in 1..=254 {
        let number = first.wrapping_add(count);
        let link = format!("test-gitlab-{number}");
        let words = [
            "link", "add", &link, "type", "veth", "peer", "name", "outside", "netns", thread,
        ];
        let done = finish(Command::new("ip").args(words), b"");
        if done.status.success() {
            return (link, Ipv4Addr::new(198, 51, 100, number));
        }
        assert!(done.err().contains("File exists"), "{}", done.describe());
    }
    panic!("all links are in use; see 'ip link'")
}

fn ip(words: &str) {
    let _ = finish(Command::new("ip").args(words.split(' ')), b"").expect(0);
}
