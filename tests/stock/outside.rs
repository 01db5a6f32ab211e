//! The network around the host: a link to a network namespace with a DNS server and an echo server,
//! which stands for the rest of the world. The addresses are those of RFC 5737 and RFC 3849.

use std::sync::OnceLock;
use std::time::Duration;

use nspawn_tests::{sh, wait_until};

/// The host's own address on its uplink.
pub const HOST: &str = "192.0.2.1";
/// An address in the outside, where the DNS server and the server of [`ANSWER`] listen.
pub const SERVER: &str = "192.0.2.254";
/// The same server's IPv6 address.
pub const SERVER_IPV6: &str = "2001:db8::254";
/// The TCP port of that server.
pub const PORT: u16 = 8000;
/// The line that the server sends to every client.
pub const ANSWER: &str = "hello from outside";
/// A name that the DNS server knows; its address is [`SERVER`].
pub const NAME: &str = "outside.test";

const SET_UP: &str = "
    ip netns add outside
    ip link add uplink type veth peer name eth0 netns outside
    ip address add 192.0.2.1/24 dev uplink
    ip address add 2001:db8::1/64 dev uplink nodad
    ip link set uplink up
    ip -n outside address add 192.0.2.254/24 dev eth0
    ip -n outside address add 2001:db8::254/64 dev eth0 nodad
    ip -n outside link set eth0 up
    ip -n outside link set lo up
    ip route replace default via 192.0.2.254
    ip -6 route replace default via 2001:db8::254
    systemd-run --quiet --collect --unit=outside-dns --property=NetworkNamespacePath=/run/netns/outside \
        dnsmasq --keep-in-foreground --conf-file=/dev/null --no-resolv --no-hosts --user=root \
        --address=/outside.test/192.0.2.254
    systemd-run --quiet --collect --unit=outside-server --property=NetworkNamespacePath=/run/netns/outside \
        socat TCP6-LISTEN:8000,ipv6only=0,reuseaddr,fork 'SYSTEM:echo hello from outside'
";

/// Sets the network up once, and waits until its servers answer. IPv6 answers later than IPv4, when
/// the kernel has noticed that the link is up.
#[track_caller]
pub fn ensure() {
    static DONE: OnceLock<()> = OnceLock::new();
    DONE.get_or_init(|| {
        sh(&format!("set -e; {SET_UP}")).expect(0);
        for address in [SERVER, SERVER_IPV6] {
            wait_until(
                &format!("{address} answers"),
                Duration::from_secs(60),
                || {
                    sh(&format!("timeout 5 {}", connect(address, PORT)))
                        .out()
                        .trim()
                        == ANSWER
                },
            );
        }
    });
}

/// A shell command that prints [`ANSWER`] if it can connect to `address`.
pub fn connect(address: &str, port: u16) -> String {
    format!("bash -c 'exec 3<>/dev/tcp/{address}/{port} && head -n 1 <&3'")
}
