//! A place on the network that is outside of the host, as a GitLab is: machines of jobs can't reach the host's own
//! addresses. It is a network namespace, joined to the host's by a pair of links; it has no name, and ends with the
//! sockets that are in it, so that nothing is left of it however the tests end.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::gettid;

use crate::finish;

const PORT: u16 = 80;

/// The place, and what listens there. All that share the host's network have each their own.
#[derive(Debug)]
pub struct Place {
    link: String,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Place {
    /// Makes one.
    pub fn new() -> (Self, TcpListener) {
        let (to_inside, from_outside) = channel();
        let (to_outside, from_inside) = channel();
        let inside = thread::spawn(move || listen(&to_outside, &from_outside));
        let thread = from_inside
            .recv()
            .unwrap_or_else(|_| panic!("no network namespace can be made"));
        let (link, address) = join(&thread);
        let place = Self {
            link,
            address: (address, PORT).into(),
        };
        // The host's side has no address, which machines would have to be kept from.
        ip(&format!("link set {} up", place.link));
        ip(&format!("route add {address}/32 dev {}", place.link));
        let _ = to_inside.send(address);
        (
            place,
            inside
                .join()
                .unwrap_or_else(|_| panic!("nothing can listen at {address}")),
        )
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["link", "delete", &self.link])
            .status();
    }
}

// In a thread of its own, which alone is in the namespace.
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

// Whoever could make the link has its address; they are of those for documentation (RFC 5737).
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
    panic!("all places are taken; what does 'ip link' show?")
}

fn ip(words: &str) {
    let _ = finish(Command::new("ip").args(words.split(' ')), b"").expect(0);
}
