//! Networks.

use crate::row::{LASTING, Row, row};

pub const PACKAGES: &str = "iproute2 iputils-ping curl wget bind9-dnsutils socat netcat-openbsd iptables nftables \
    tcpdump traceroute procps python3 nmap";

/// Reason of podman's column for networks.
const PODMAN: &str = "Operation not permitted";

pub fn rows() -> Vec<Row> {
    [names(), sockets(), interfaces(), filters()]
        .into_iter()
        .flatten()
        .collect()
}

fn names() -> Vec<Row> {
    vec![
        row("`localhost` and the own name resolve", "getent hosts localhost >/dev/null; timeout 4 getent hosts $(hostname) >/dev/null && echo found").prints("found"),
        row("names of the Internet resolve", "getent hosts deb.debian.org >/dev/null && echo found").prints("found"),
        row("`dig`", "dig +short deb.debian.org | wc -l | xargs test 0 -lt"),
        row("`curl` and `wget` of a page", "
             u=http://deb.debian.org/debian/dists/stable/Release; curl -sSf $u | grep -c '^Origin: Debian'
             wget -qO- $u | grep -c '^Origin: Debian'")
        .prints("1\n1"),
        row("an entry of `/etc/hosts`", "cp /etc/hosts .; echo 127.0.0.9 row.test >>/etc/hosts; getent hosts row.test | cut -d' ' -f1; cat hosts >/etc/hosts")
            .prints("127.0.0.9"),
        row("`ping` as a user", "as_ci ping -c 1 -W 2 127.0.0.1 | grep -o '1 received'").prints("1 received")
        .podman_fails("Operation not permitted"),
        row("`ping ::1`", "ping -c 1 -W 2 ::1 | grep -o '1 received'").prints("1 received")
        .podman_fails("Operation not permitted"),
        row("`traceroute`", "traceroute -n -q 1 -w 1 127.0.0.1 | grep -c '^ 1  127.0.0.1'").prints("1"),
        row("`nmap` of localhost", "socat TCP-LISTEN:18001,fork EXEC:true 2>/dev/null & wait_port 18001; nmap -Pn -p 18001 localhost | grep -o '18001/tcp open'")
            .prints("18001/tcp open")
        .podman_fails("raw socket"),
    ]
}

fn sockets() -> Vec<Row> {
    vec![
        row("a server on 127.0.0.1", "python3 -m http.server 18002 --bind 127.0.0.1 &>/dev/null & wait_port 18002
             curl -s -o /dev/null -w '%{http_code}' http://localhost:18002")
        .prints("200"),
        row("a server on ::1", "socat TCP6-LISTEN:18003,fork SYSTEM:'echo six' 2>/dev/null & wait_port 18003 ::1; nc -d ::1 18003").prints("six"),
        row("a server on the own name", "socat TCP-LISTEN:18004,fork SYSTEM:'echo named' 2>/dev/null & wait_port 18004; nc -d $(hostname) 18004").prints("named"),
        row("a server on port 80", "socat TCP-LISTEN:80,fork,reuseaddr SYSTEM:'echo eighty' 2>/dev/null & wait_port 80; nc -d localhost 80").prints("eighty"),
        row("`ss -l`", "socat TCP-LISTEN:18006,fork EXEC:true 2>/dev/null & wait_port 18006; ss -Hltn 'sport = 18006' | wc -l").prints("1"),
        row("UDP", "socat -u UDP-RECV:18007 STDOUT >o & wait_for sh -c 'ss -Hlun sport = 18007 | grep -q .'; echo datagram | socat - UDP-SENDTO:127.0.0.1:18007; wait_for grep datagram o; cat o").prints("datagram"),
        row("UNIX sockets", "socat UNIX-LISTEN:s,fork SYSTEM:'echo unix' & wait_for test -S s; socat -u UNIX-CONNECT:s -").prints("unix"),
        row("abstract UNIX sockets", "socat ABSTRACT-LISTEN:row,fork SYSTEM:'echo abstract' & wait_for grep -w @row /proc/net/unix; socat -u ABSTRACT-CONNECT:row -").prints("abstract"),
        row("multicast", r#"python3 -c '
import socket as s
r = s.socket(s.AF_INET, s.SOCK_DGRAM)
r.bind(("", 18008)); r.settimeout(5)
r.setsockopt(s.IPPROTO_IP, s.IP_ADD_MEMBERSHIP, s.inet_aton("239.1.1.1") + s.inet_aton("127.0.0.1"))
w = s.socket(s.AF_INET, s.SOCK_DGRAM)
w.setsockopt(s.IPPROTO_IP, s.IP_MULTICAST_IF, s.inet_aton("127.0.0.1"))
w.sendto(b"many", ("239.1.1.1", 18008))
print(r.recv(9).decode())'"#)
        .prints("many"),
        row("raw sockets", "python3 -c 'import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)'").podman_fails(PODMAN),
        row("`tcpdump -i lo`", "tcpdump -i lo -c 1 -w f icmp 2>o & wait_for grep listening o || { cat o; exit 1; }; ping -c 2 127.0.0.1 >/dev/null; wait $!; test -s f").podman_fails("permission"),
        row("sockets of AF_ALG", "python3 -c 'import socket; socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET, 0)'")
            .fails("Address family not supported", "Few programs use it, and it has had holes. `--allow-address-family=AF_ALG` opens it.")
            .podman_fails("Address family not supported"),
    ]
}

fn interfaces() -> Vec<Row> {
    vec![
        row("an interface with an address and a route", "ip -br address show up | grep -c '^eth0\\|^e' | xargs test 1 -le; ip route show default | grep -c via | xargs test 1 -le"),
        row("a second address of lo", "ip address add 10.99.0.1/32 dev lo; ping -c 1 10.99.0.1 | grep -o '1 received'; ip address del 10.99.0.1/32 dev lo").prints("1 received").podman_fails(PODMAN),
        row("a veth pair", "ip link add v0 type veth peer v1; ip -br link show v1 | wc -l; ip link del v0").prints("1").podman_fails(PODMAN),
        row("a bridge", "ip link add b0 type bridge; ip link del b0").podman_fails(PODMAN).if_host("unshare -n ip link add b0 type bridge"),
        row("a VLAN", "ip link add link lo name lo.5 type vlan id 5; ip link del lo.5").podman_fails(PODMAN).if_host("unshare -n ip link add link lo name lo.5 type vlan id 5"),
        row("a dummy interface", "ip link add d0 type dummy; ip link del d0").podman_fails(PODMAN).if_host("unshare -n ip link add d0 type dummy"),
        row("a WireGuard interface", "ip link add w0 type wireguard; ip link del w0").podman_fails(PODMAN).if_host("unshare -n ip link add w0 type wireguard"),
        row("`ip netns`", "ip netns add n; ip netns exec n ip link set lo up; ip netns exec n ping -c 1 127.0.0.1 | grep -o '1 received'; ip netns del n").prints("1 received").only(LASTING).podman_fails(PODMAN),
        row("a tun device", "ip tuntap add mode tun t0; ip link del t0").with("--device=tun"),
        row("`sysctl net.*`", "sysctl -qw net.ipv4.ip_forward=1; sysctl -n net.ipv4.ip_forward; sysctl -qw net.ipv4.ip_forward=0").prints("1")
        .podman_fails("permission denied"),
        row("`tc`", "tc qdisc add dev lo root pfifo; tc qdisc del dev lo root").podman_fails(PODMAN),
    ]
}

fn filters() -> Vec<Row> {
    vec![
        row("`iptables`", "iptables -A OUTPUT -d 10.98.0.1 -j REJECT; iptables -S OUTPUT | grep -c REJECT; iptables -F OUTPUT").prints("1").podman_fails("Permission denied"),
        row("NAT by `iptables`", "iptables -t nat -A OUTPUT -p tcp -d 10.98.0.1 --dport 80 -j REDIRECT --to-ports 18009
             socat TCP-LISTEN:18009,fork SYSTEM:'echo nat' 2>/dev/null & wait_port 18009; nc -d 10.98.0.1 80; iptables -t nat -F").prints("nat").podman_fails("Permission denied"),
        row("`nft`", "nft add table inet row; nft list tables | grep -c row; nft delete table inet row").prints("1").podman_fails(PODMAN),
    ]
}
