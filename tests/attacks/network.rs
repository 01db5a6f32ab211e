//! The host's network: its loopback, its addresses, the services of its link, its sockets, and the
//! traffic of other machines.

use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nspawn_tests::{Machine, call, sh};

use crate::probe::{Place, Probe, got_in};
use crate::suite::{Control, Fixture, Outside, Suite, machine, name};

/// Address of the metadata service of clouds, which serves secrets of an instance.
const METADATA: &str = "169.254.169.254";
/// Addresses of the host beside those of its link (RFC 2544, RFC 4193).
const SECOND: [&str; 2] = ["198.18.77.7", "fd77:7777::7"];

/// Connects to a port of each address, and reads the secret there.
const CONNECT: &str = r#"
secret=$1 port=$2
shift 2
for address in "$@"; do
    said=$(timeout 2 bash -c 'exec 3<>"/dev/tcp/$0/$1" && head -n 1 <&3' "$address" "$port" 2>&1)
    code=$?
    [ "$said" != "$secret" ] || got_in "$address"
    [ $code -ne 127 ] || exit
done
kept_out "$said"
"#;

/// Sends datagrams. The receiver decides whether they arrive.
const SEND: &str = r#"
bash -c 'for i in 1 2 3; do echo "$2" >"/dev/udp/$0/$1"; done' "$1" "$2" "$3" 2>/dev/null
kept_out 'unless it has arrived'
"#;

/// Sends the first packet of a TCP connection in a raw frame, past the routes and the filters of
/// the machine's own kernel.
const FRAME: &str = r#"
use Socket qw(:DEFAULT inet_pton);
my ($to, $port) = @ARGV;
my $is_six = $to =~ /:/;
my ($family, $option) = $is_six ? (AF_INET6, "-6") : (AF_INET, "-4");
my ($device) = `ip $option route show default` =~ /dev (\S+)/ or die "no route: $!";
my ($index, $own) = `ip -o link show dev $device` =~ /^(\d+):.*link\/ether ([0-9a-f:]+)/ or die "no link";
my ($from) = `ip $option -o addr show dev $device scope global` =~ /inet6? ([0-9a-f.:]+)/ or die "no address";
my ($source, $target) = map { inet_pton($family, $_) } $from, $to;
my $sum = sub {
    my $sum = 0;
    $sum += $_ for unpack("n*", shift);
    $sum = ($sum & 0xffff) + ($sum >> 16) while $sum >> 16;
    ~$sum & 0xffff;
};
my $tcp = sub { pack("nnNNnnnn", 40000 + $$ % 20000, $port, $$, 0, 0x5002, 65535, shift, 0) };
my $pseudo = $source . $target . ($is_six ? pack("NN", 20, 6) : pack("nn", 6, 20));
my $segment = $tcp->($sum->($pseudo . $tcp->(0)));
my $header = sub { pack("CCnnnCCn", 0x45, 0, 40, 1, 0, 64, 6, shift) . $source . $target };
my $packet = $is_six ? pack("NnCC", 0x60000000, 20, 6, 64) . $source . $target : $header->($sum->($header->(0)));
my $type = $is_six ? 0x86dd : 0x0800;
my $everybody = "\xff" x 6;
socket(my $link, 17, SOCK_RAW, 0) or die "no socket: $!";
for (1 .. 2) {
    my $frame = $everybody . pack("H12n", $own =~ s/://gr, $type) . $packet . $segment;
    send($link, $frame, 0, pack("SnlSCCa8", 17, $type, $index, 1, 0, 6, $everybody)) or die "not sent: $!";
    select undef, undef, undef, 0.2;
}
kept_out "unless it has arrived";
"#;

/// Connects to a UNIX socket, by its abstract name and by its path in each process's root.
const UNIX: &str = r#"
use Socket;
my ($path, $secret) = @ARGV;
for my $address ("\0$path", $path, map { "$_$path" } glob("/proc/[0-9]*/root")) {
    socket(my $socket, PF_UNIX, SOCK_STREAM, 0) or die "no socket: $!";
    length $address < 108 && connect($socket, pack_sockaddr_un($address)) or next;
    got_in $address if <$socket> =~ /$secret/;
}
kept_out "$!";
"#;

/// Connects to the host of a virtual machine. vsock(7) ignores network namespaces.
const VSOCK: &str = r#"
socket(my $socket, 40, 1, 0) or $! == 97 ? unsupported "$!" : kept_out "$!";
local $SIG{ALRM} = sub { got_in "as far as waiting for an answer" };
alarm 2;
connect($socket, pack("SSLLx4", 40, 0, 1, 2)) and got_in "connected";
got_in "as far as: $!";
"#;

/// Listens on all links for two seconds, and gets in if it receives a word.
const SNIFF: &str = r#"
my $word = shift;
socket(my $link, 17, 3, unpack("S", pack("n", 3))) or print("on\n"), kept_out "$!";
print "on\n";
my $end = time + 5;
while (time < $end) {
    vec(my $ready = "", fileno($link), 1) = 1;
    select($ready, undef, undef, 0.2) > 0 or next;
    recv($link, my $frame, 65536, 0);
    got_in "seen" if index($frame, $word) >= 0;
}
kept_out "not seen";
"#;

/// Adds a network link, which must not appear on the host.
const LINK: &str = r#"
attempt ip link add attack type dummy || attempt ip tuntap add attack mode tun
kept_out "unless the host has it: $why"
"#;

/// Sends a frame of an experimental protocol on every link, and a packet with a source address for
/// documentation (RFC 5737).
const SPOOF: &str = r#"
use Socket;
my ($frame, $payload) = @ARGV;
socket(my $link, 17, 3, 0) or kept_out "$!";
for (`ip -o link`) {
    my ($index) = /^(\d+):.*link\/ether/ or next;
    my $header = pack("H12H12n", "ffffffffffff", "020000000001", 0x88b5);
    send($link, $header . $frame . "\0" x 40, 0, pack("SnlSCCa8", 17, 0x88b5, $index, 1, 0, 6, "\xff" x 6));
    $sent++;
}
$sent or die "no link";
socket(my $raw, PF_INET, SOCK_RAW, 255) or kept_out "$!";
my $udp = pack("nnnn", 9, 9, 8 + length $payload, 0) . $payload;
my $packet = pack("CCnnnCCna4a4", 0x45, 0, 20 + length $udp, 1, 0, 64, 17, 0, inet_aton("198.51.100.77"), inet_aton("203.0.113.9"));
send($raw, $packet . $udp, 0, pack_sockaddr_in(9, inet_aton("203.0.113.9")));
kept_out "unless it is seen";
"#;

pub fn rows(suite: &mut Suite, fixture: &Fixture) {
    let addresses = &fixture.addresses;
    let gateways = addresses
        .gateways
        .each_ref()
        .map(|gateway| gateway.as_deref());
    for (name, address, more) in [
        (
            "the host's loopback by 127.0.0.1 and by its gateway",
            "127.0.0.1",
            gateways[0],
        ),
        (
            "the host's loopback by ::1 and by its gateway",
            "::1",
            gateways[1],
        ),
    ] {
        suite.row(name, || {
            connections_fail(fixture, address, &[Some(address), more])
        });
    }
    for (name, address) in addresses.others() {
        suite.row(name, || {
            connections_fail(fixture, &address, &[Some(&*address)])
        });
    }
    let (open, has_ipv6) = (open_machine(), addresses.own[1].is_some());
    let loopback = [
        (
            "the host's loopback by 127.0.0.1, by raw frames",
            "127.0.0.1",
        ),
        ("the host's loopback by ::1, by raw frames", "::1"),
    ];
    // An IPv6 frame needs a route, which some hosts lack.
    for (name, address) in loopback
        .into_iter()
        .filter(|(_, address)| !address.contains(':') || has_ipv6)
    {
        suite.row(name, || frames_fail(fixture, &open, address));
    }
    for (name, address) in addresses.others() {
        suite.row(&format!("{name}, by raw frames"), || {
            frames_fail(fixture, &open, &address)
        });
    }
    for (name, address) in [
        ("datagrams to the host's loopback", "127.0.0.1"),
        ("datagrams to a cloud's metadata service", METADATA),
    ] {
        suite.row(name, || datagrams_fail(fixture, address));
    }
    drop(open);
    suite.row("abstract sockets of the host", || {
        let name = name();
        let address = UnixAddress::from_abstract_name(&name).unwrap();
        let _server = Server::unix(UnixListener::bind_addr(&address).unwrap(), &name);
        prove_and_attack(
            fixture,
            Control::Unconfined,
            &Probe::perl(UNIX, &[&name, &name]),
        )
    });
    suite.row("sockets of the host by their paths", || {
        let outside = Outside::new();
        let path = outside.file("socket");
        let _server = Server::unix(UnixListener::bind(&path).unwrap(), &outside.secret);
        prove_and_attack(
            fixture,
            Control::Host,
            &Probe::perl(UNIX, &[&path, &outside.secret]),
        )
    });
    suite.row("the host's system bus and systemd", || {
        buses_differ(fixture)
    });
    suite.probe(
        "the host of a virtual machine by vsock",
        Control::Host,
        &Probe::perl(VSOCK, &[]),
        fixture,
    );
    suite.row("receiving the traffic of another machine", || {
        traffic_is_not_received(fixture)
    });
    suite.row(
        "sending with a forged source address on the host's links",
        || forged_packets_are_dropped(fixture),
    );
    suite.row("adding network links to the host", || {
        no_link_appears(fixture)
    });
}

/// Addresses of the host. Some of them exist only until this is dropped.
pub struct Addresses {
    own: [Option<String>; 2],
    gateways: [Option<String>; 2],
}

impl Addresses {
    /// Adds the suite's addresses to the host, and finds the others.
    pub fn add() -> Self {
        for address in [METADATA, SECOND[0]] {
            sh(&format!("ip addr replace {address}/32 dev lo")).expect(0);
        }
        sh(&format!(
            "ip -6 addr replace {}/128 dev lo nodad",
            SECOND[1]
        ));
        let routes =
            ["-4", "-6"].map(|family| sh(&format!("ip {family} -o route show default")).out());
        let after = |text: &str, word: &str| {
            text.split(word)
                .nth(1)
                .and_then(|rest| rest.split_whitespace().next())
                .map(str::to_owned)
        };
        let own = |family: usize| {
            let device = after(&routes[family], " dev ")?;
            let list = sh(&format!(
                "ip -{} -o addr show dev {device} scope global",
                ["4", "6"][family]
            ))
            .out();
            after(&list, [" inet ", " inet6 "][family])
                .map(|address| address.split('/').next().unwrap_or_default().to_owned())
        };
        Self {
            own: [own(0), own(1)],
            gateways: routes.each_ref().map(|route| after(route, " via ")),
        }
    }

    /// Returns the addresses outside of the loopback network, and their names in the table.
    fn others(&self) -> Vec<(&'static str, String)> {
        let all = [
            // A host without an address fails this row.
            (
                "the host's own address",
                Some(self.own[0].clone().unwrap_or_default()),
            ),
            ("the host's own address, IPv6", self.own[1].clone()),
            ("a second address of the host", Some(SECOND[0].to_owned())),
            (
                "a second address of the host, IPv6",
                self.own[1].as_ref().map(|_| SECOND[1].to_owned()),
            ),
            (
                "a cloud's metadata service, link-local",
                Some(METADATA.to_owned()),
            ),
        ];
        all.into_iter()
            .filter_map(|(name, address)| Some((name, address?)))
            .collect()
    }
}

impl Drop for Addresses {
    fn drop(&mut self) {
        sh(&format!(
            "ip addr del {METADATA}/32 dev lo; ip addr del {}/32 dev lo; ip addr del {}/128 dev lo",
            SECOND[0], SECOND[1]
        ));
    }
}

/// A server that sends a secret to every client.
pub struct Server {
    pub port: u16,
    was_reached: Arc<AtomicBool>,
}

impl Server {
    pub fn tcp(address: &str, secret: &str) -> Self {
        let address: IpAddr = address.parse().unwrap();
        let listener = TcpListener::bind(SocketAddr::new(address, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        Self::start(port, secret, move || {
            listener.accept().map(|(stream, _)| stream)
        })
    }

    pub fn unix(listener: UnixListener, secret: &str) -> Self {
        Self::start(0, secret, move || {
            listener.accept().map(|(stream, _)| stream)
        })
    }

    // The thread and the socket exist until the end of this program.
    fn start<Stream: Write>(
        port: u16,
        secret: &str,
        accept: impl Fn() -> std::io::Result<Stream> + Send + 'static,
    ) -> Self {
        let was_reached = Arc::new(AtomicBool::new(false));
        let (reached, line) = (Arc::clone(&was_reached), format!("{secret}\n"));
        thread::spawn(move || {
            while let Ok(mut stream) = accept() {
                reached.store(true, Ordering::SeqCst);
                let _ = stream.write_all(line.as_bytes());
            }
        });
        Self { port, was_reached }
    }

    /// Returns whether a client has connected since the last call.
    pub fn was_reached(&self) -> bool {
        thread::sleep(Duration::from_millis(200));
        self.was_reached.swap(false, Ordering::SeqCst)
    }
}

fn prove_and_attack(fixture: &Fixture, control: Control, probe: &Probe) -> Control {
    let control = probe.prove(control, fixture);
    probe.is_kept_out(&fixture.attacker);
    control
}

fn connections_fail(fixture: &Fixture, address: &str, targets: &[Option<&str>]) -> Control {
    let secret = name();
    let server = Server::tcp(address, &secret);
    let port = server.port.to_string();
    let arguments: Vec<&str> = [&*secret, &*port]
        .into_iter()
        .chain(targets.iter().flatten().copied())
        .collect();
    let control = prove_and_attack(
        fixture,
        Control::Unconfined,
        &Probe::shell(CONNECT, &arguments),
    );
    assert!(server.was_reached());
    control
}

/// Checks that a raw frame does not arrive. The control is a machine that may connect to all
/// addresses.
fn frames_fail(fixture: &Fixture, open: &Machine, address: &str) -> Control {
    let arrives = |machine: &Machine, address: &str| {
        let server = Server::tcp(address, "");
        Probe::perl(FRAME, &[address, &server.port.to_string()]).is_kept_out(machine);
        server.was_reached()
    };
    assert!(
        arrives(open, SECOND[usize::from(address.contains(':'))]),
        "no frame of the control arrives, so the attack proves nothing"
    );
    assert!(
        !arrives(&fixture.attacker, address),
        "the attacker's frame has arrived"
    );
    Control::Permitted
}

fn open_machine() -> Machine {
    machine(&["--allow-host=0.0.0.0/0", "--allow-host=::/0"])
}

fn datagrams_fail(fixture: &Fixture, address: &str) -> Control {
    let secret = name();
    let server = UdpSocket::bind((address, 0)).unwrap();
    server
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let port = server.local_addr().unwrap().port().to_string();
    let send = Probe::shell(SEND, &[address, &port, &secret]);
    let mut buffer = [0; 100];
    send.is_kept_out(&fixture.unconfined);
    assert!(
        server.recv(&mut buffer).is_ok(),
        "no datagram of the control arrives, so the attack proves nothing"
    );
    while server.recv(&mut buffer).is_ok() {}
    send.is_kept_out(&fixture.attacker);
    assert!(
        server.recv(&mut buffer).is_err(),
        "the attacker's datagram has arrived"
    );
    Control::Unconfined
}

/// Checks that the machine has sockets of its own at the paths of the host's buses.
fn buses_differ(fixture: &Fixture) -> Control {
    for path in [
        "/run/dbus/system_bus_socket",
        "/run/systemd/private",
        "/run/systemd/journal/stdout",
    ] {
        let hosts = std::fs::metadata(path).unwrap();
        let machines = fixture
            .attacker
            .run(["stat", "--format=%d:%i", path])
            .expect(0)
            .out();
        assert_ne!(
            machines.trim(),
            format!("{}:{}", hosts.dev(), hosts.ino()),
            "{path}"
        );
    }
    let id = |done: nspawn_tests::Done| done.expect(0).out();
    let ask = [
        "org.freedesktop.DBus",
        "/org/freedesktop/DBus",
        "org.freedesktop.DBus",
        "GetId",
    ];
    let ask = ["busctl", "call"]
        .iter()
        .chain(&ask)
        .copied()
        .collect::<Vec<_>>();
    assert_ne!(id(call(ask[0], &ask[1..])), id(fixture.attacker.run(&ask)));
    Control::Absent
}

fn traffic_is_not_received(fixture: &Fixture) -> Control {
    let receives = |place: Place| {
        let word = name();
        let sniffer = Probe::perl(SNIFF, &[&word]).start(place);
        let send = format!(
            "ip route get 203.0.113.9 >/dev/null && for i in 1 2 3; do echo {word} >/dev/udp/203.0.113.9/9; sleep 0.1; done"
        );
        fixture.neighbour.run(["bash", "-c", &send]).expect(0);
        got_in(sniffer)
    };
    assert!(
        receives(Place::Machine(&fixture.unconfined)),
        "the unconfined machine receives nothing, so the attack proves nothing"
    );
    assert!(
        !receives(Place::Machine(&fixture.attacker)),
        "the attacker receives the traffic"
    );
    Control::Unconfined
}

fn forged_packets_are_dropped(fixture: &Fixture) -> Control {
    let are_received = |place: Place| {
        let word = name();
        let [frame, packet] =
            ["a frame", "a packet"].map(|kind| format!("{kind} without an owner: {word}"));
        let sniffers = [&frame, &packet].map(|word| Probe::perl(SNIFF, &[word]).start(Place::Host));
        Probe::perl(SPOOF, &[&frame, &packet]).is_kept_out_of(place);
        sniffers.map(got_in)
    };
    assert_eq!(
        are_received(Place::Machine(&fixture.unconfined)),
        [true; 2],
        "the unconfined machine can't send them, so the attack proves nothing"
    );
    assert_eq!(
        are_received(Place::Machine(&fixture.attacker)),
        [false; 2],
        "the host receives them"
    );
    Control::Unconfined
}

fn no_link_appears(fixture: &Fixture) -> Control {
    let appears = |place: Place| {
        Probe::shell(LINK, &[]).is_kept_out_of(place);
        sh("ip link del attack").code() == 0
    };
    assert!(
        appears(Place::Host),
        "the host can't add a link, so the attack proves nothing"
    );
    assert!(!appears(Place::Machine(&fixture.attacker)));
    Control::Host
}
