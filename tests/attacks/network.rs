//! The host's network: its loopback, its own addresses, its link's services, its sockets; and what others
//! send and receive.

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
use crate::suite::{Control, Field, Outside, Suite, machine, name};

/// A cloud's service for its instances' secrets.
const METADATA: &str = "169.254.169.254";
/// An address of the host beside that of its link (RFC 2544, RFC 4193).
const SECOND: [&str; 2] = ["198.18.77.7", "fd77:7777::7"];

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

const SEND: &str = r#"
bash -c 'for i in 1 2 3; do echo "$2" >"/dev/udp/$0/$1"; done' "$1" "$2" "$3" 2>/dev/null
kept_out 'unless it has arrived'
"#;

/// The beginning of a connection that the machine's own kernel would not send like this.
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

/// Virtual machines and their hosts talk by these (vsock(7)), whatever the network namespace.
const VSOCK: &str = r#"
socket(my $socket, 40, 1, 0) or $! == 97 ? not_here "$!" : kept_out "$!";
local $SIG{ALRM} = sub { got_in "as far as waiting for an answer" };
alarm 2;
connect($socket, pack("SSLLx4", 40, 0, 1, 2)) and got_in "connected";
got_in "as far as: $!";
"#;

/// Whether a word is seen on any link within two seconds.
const SNIFF: &str = r#"
my $word = shift;
socket(my $link, 17, 3, unpack("S", pack("n", 3))) or print("on\n"), kept_out "$!";
print "on\n";
my $end = time + 2;
while (time < $end) {
    vec(my $ready = "", fileno($link), 1) = 1;
    select($ready, undef, undef, 0.2) > 0 or next;
    recv($link, my $frame, 65536, 0);
    got_in "seen" if index($frame, $word) >= 0;
}
kept_out "not seen";
"#;

const LINK: &str = r#"
attempt ip link add attack type dummy || attempt ip tuntap add attack mode tun
kept_out "unless the host has it: $why"
"#;

/// A frame of no protocol on every link, and a packet from an address that is nobody's (RFC 5737).
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

pub fn rows(suite: &mut Suite, field: &Field) {
    let addresses = &field.addresses;
    let gateways = addresses
        .gateways
        .each_ref()
        .map(|gateway| gateway.as_deref());
    for (name, address, more) in [
        (
            "the host's loopback: 127.0.0.1, and by its gateway",
            "127.0.0.1",
            gateways[0],
        ),
        (
            "the host's loopback: ::1, and by its gateway",
            "::1",
            gateways[1],
        ),
    ] {
        suite.row(name, || {
            connections_fail(field, address, &[Some(address), more])
        });
    }
    for (name, address) in addresses.others() {
        suite.row(name, || {
            connections_fail(field, &address, &[Some(&*address)])
        });
    }
    let (open, has_six) = (open_machine(), addresses.own[1].is_some());
    let loopback = [
        ("the host's loopback, by raw frames: 127.0.0.1", "127.0.0.1"),
        ("the host's loopback, by raw frames: ::1", "::1"),
    ];
    // The second needs a route, which not every host has.
    for (name, address) in loopback
        .into_iter()
        .filter(|(_, address)| !address.contains(':') || has_six)
    {
        suite.row(name, || frames_fail(field, &open, address));
    }
    for (name, address) in addresses.others() {
        suite.row(&format!("{name}, by raw frames"), || {
            frames_fail(field, &open, &address)
        });
    }
    for (name, address) in [
        ("datagrams to the host's loopback", "127.0.0.1"),
        ("datagrams to a cloud's metadata service", METADATA),
    ] {
        suite.row(name, || datagrams_fail(field, address));
    }
    drop(open);
    suite.row("abstract sockets of the host", || {
        let name = name();
        let address = UnixAddress::from_abstract_name(&name).unwrap();
        let _server = Server::unix(UnixListener::bind_addr(&address).unwrap(), &name);
        prove_and_attack(field, Control::Bare, &Probe::perl(UNIX, &[&name, &name]))
    });
    suite.row("sockets of the host by their paths", || {
        let outside = Outside::new();
        let path = outside.file("socket");
        let _server = Server::unix(UnixListener::bind(&path).unwrap(), &outside.secret);
        prove_and_attack(
            field,
            Control::Host,
            &Probe::perl(UNIX, &[&path, &outside.secret]),
        )
    });
    suite.row("the host's system bus and systemd", || buses_differ(field));
    suite.probe(
        "what runs the host, if that is a virtual machine: vsock",
        Control::Host,
        &Probe::perl(VSOCK, &[]),
        field,
    );
    suite.row("hearing what another machine sends", || {
        nothing_is_heard(field)
    });
    suite.row("sending as somebody else on the host's links", || {
        nothing_is_spoofed(field)
    });
    suite.row("links and addresses for the host", || links_stay(field));
}

/// Of the host, with some that are only there until this is dropped.
pub struct Addresses {
    own: [Option<String>; 2],
    gateways: [Option<String>; 2],
}

impl Addresses {
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

    fn others(&self) -> Vec<(&'static str, String)> {
        let all = [
            // A host without any can't have this tried.
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

/// Says a secret to all who connect, until it is dropped.
pub struct Server {
    port: u16,
    was_reached: Arc<AtomicBool>,
}

impl Server {
    fn tcp(address: &str, secret: &str) -> Self {
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

    // Its thread and its socket go with this program.
    fn start<Stream: Write>(
        port: u16,
        secret: &str,
        accept: impl Fn() -> std::io::Result<Stream> + Send + 'static,
    ) -> Self {
        let was_reached = Arc::new(AtomicBool::new(false));
        let (tell, line) = (Arc::clone(&was_reached), format!("{secret}\n"));
        thread::spawn(move || {
            while let Ok(mut stream) = accept() {
                tell.store(true, Ordering::SeqCst);
                let _ = stream.write_all(line.as_bytes());
            }
        });
        Self { port, was_reached }
    }

    /// Whether anybody has connected since it was last asked.
    pub fn was_reached(&self) -> bool {
        thread::sleep(Duration::from_millis(200));
        self.was_reached.swap(false, Ordering::SeqCst)
    }
}

fn prove_and_attack(field: &Field, control: Control, probe: &Probe) -> Control {
    let control = probe.prove(control, field);
    probe.is_kept_out(&field.machine);
    control
}

fn connections_fail(field: &Field, address: &str, targets: &[Option<&str>]) -> Control {
    let secret = name();
    let server = Server::tcp(address, &secret);
    let port = server.port.to_string();
    let arguments: Vec<&str> = [&*secret, &*port]
        .into_iter()
        .chain(targets.iter().flatten().copied())
        .collect();
    let control = prove_and_attack(field, Control::Bare, &Probe::shell(CONNECT, &arguments));
    assert!(server.was_reached());
    control
}

// Proved by a machine that may connect to all addresses.
fn frames_fail(field: &Field, open: &Machine, address: &str) -> Control {
    let arrives = |machine: &Machine, address: &str| {
        let server = Server::tcp(address, "");
        Probe::perl(FRAME, &[address, &server.port.to_string()]).is_kept_out(machine);
        server.was_reached()
    };
    assert!(
        arrives(open, SECOND[usize::from(address.contains(':'))]),
        "no frame arrives, so it proves nothing"
    );
    assert!(!arrives(&field.machine, address), "it has arrived");
    Control::Open
}

fn open_machine() -> Machine {
    machine(&["--allow-host=0.0.0.0/0", "--allow-host=::/0"])
}

fn datagrams_fail(field: &Field, address: &str) -> Control {
    let secret = name();
    let server = UdpSocket::bind((address, 0)).unwrap();
    server
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let port = server.local_addr().unwrap().port().to_string();
    let send = Probe::shell(SEND, &[address, &port, &secret]);
    let mut buffer = [0; 100];
    send.is_kept_out(&field.bare);
    assert!(
        server.recv(&mut buffer).is_ok(),
        "no datagram arrives, so it proves nothing"
    );
    while server.recv(&mut buffer).is_ok() {}
    send.is_kept_out(&field.machine);
    assert!(server.recv(&mut buffer).is_err(), "it has arrived");
    Control::Bare
}

// The machine has its own at these paths.
fn buses_differ(field: &Field) -> Control {
    for path in [
        "/run/dbus/system_bus_socket",
        "/run/systemd/private",
        "/run/systemd/journal/stdout",
    ] {
        let hosts = std::fs::metadata(path).unwrap();
        let machines = field
            .machine
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
    assert_ne!(id(call(ask[0], &ask[1..])), id(field.machine.run(&ask)));
    Control::Nowhere
}

fn nothing_is_heard(field: &Field) -> Control {
    let heard = |place: Place| {
        let word = name();
        let sniffer = Probe::perl(SNIFF, &[&word]).start(place);
        let send = format!(
            "ip route get 203.0.113.9 >/dev/null && for i in 1 2 3; do echo {word} >/dev/udp/203.0.113.9/9; sleep 0.1; done"
        );
        field.neighbour.run(["bash", "-c", &send]).expect(0);
        got_in(sniffer)
    };
    assert!(
        heard(Place::Machine(&field.bare)),
        "not even the host hears it, so it proves nothing"
    );
    assert!(!heard(Place::Machine(&field.machine)), "it is heard");
    Control::Bare
}

fn nothing_is_spoofed(field: &Field) -> Control {
    let seen = |place: Place| {
        let word = name();
        let [frame, packet] =
            ["a frame", "a packet"].map(|kind| format!("{kind} from nobody: {word}"));
        let sniffers = [&frame, &packet].map(|word| Probe::perl(SNIFF, &[word]).start(Place::Host));
        Probe::perl(SPOOF, &[&frame, &packet]).is_kept_out_of(place);
        sniffers.map(got_in)
    };
    assert_eq!(
        seen(Place::Machine(&field.bare)),
        [true; 2],
        "it proves nothing"
    );
    assert_eq!(
        seen(Place::Machine(&field.machine)),
        [false; 2],
        "it is seen"
    );
    Control::Bare
}

fn links_stay(field: &Field) -> Control {
    let is_there = |place: Place| {
        Probe::shell(LINK, &[]).is_kept_out_of(place);
        sh("ip link del attack").code() == 0
    };
    assert!(
        is_there(Place::Host),
        "not even there, so it proves nothing"
    );
    assert!(!is_there(Place::Machine(&field.machine)));
    Control::Host
}
