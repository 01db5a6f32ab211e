//! Networks of hosts, and access of machines to the host itself.

use std::time::Duration;

use nspawn_tests::{Machine, call, image, sh, wait_until};

use crate::outside::{self, ANSWER, HOST, NAME, PORT, SERVER, SERVER_IPV6, connect};

/// A change of the host that is undone at the end of its test.
struct Change(&'static str);

impl Change {
    #[track_caller]
    fn make(apply: &str, undo: &'static str) -> Self {
        sh(&format!("set -e; {apply}")).expect(0);
        Self(undo)
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        let _ = sh(self.0);
    }
}

/// Restores the routes and the uplink of [`outside`].
const ROUTES: &str = "
    ip link set uplink up
    ip address replace 192.0.2.1/24 dev uplink
    ip address replace 2001:db8::1/64 dev uplink nodad
    ip route replace default via 192.0.2.254
    ip -6 route replace default via 2001:db8::254
";

/// Changes the routes or the uplink of [`outside`].
#[track_caller]
fn change_routes(apply: &str) -> Change {
    outside::ensure();
    Change::make(apply, ROUTES)
}

fn machine() -> Machine {
    outside::ensure();
    Machine::with(&["--init=stub"])
}

fn answer(machine: &Machine, address: &str, port: u16) -> String {
    machine
        .sh(&format!("timeout 20 {}", connect(address, port)))
        .out()
        .trim()
        .to_owned()
}

/// Checks that the server answers.
///
/// With passt of 2023 (Debian 12) about one connection in a hundred stalls in the emulated host, so
/// the check connects again.
#[track_caller]
fn expect_answer(machine: &Machine, address: &str, port: u16) {
    wait_until(
        &format!("{address} answers"),
        Duration::from_secs(60),
        || answer(machine, address, port) == ANSWER,
    );
}

fn resolves(machine: &Machine) -> String {
    let found = machine.sh(&format!("timeout 30 getent ahostsv4 {NAME}"));
    found
        .out()
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .to_owned()
}

/// Waits until the host resolves [`NAME`].
#[track_caller]
fn wait_for_resolver() {
    wait_until("the host resolves names", Duration::from_secs(30), || {
        sh(&format!("getent hosts {NAME}")).code() == 0
    });
}

#[test]
fn addresses_are_the_machines_own() {
    let machine = machine();
    let own = machine
        .sh("ip -brief address show dev eth0")
        .expect(0)
        .out();
    assert!(
        own.contains("198.19.0.2/30") && !own.contains(HOST),
        "{own}"
    );
    expect_answer(&machine, SERVER, PORT);
    expect_answer(&machine, SERVER_IPV6, PORT);
    assert_eq!(resolves(&machine), SERVER);
}

#[test]
fn machine_name_never_resolves_to_the_host() {
    outside::ensure();
    let nss = sh("grep ^hosts: /etc/nsswitch.conf").expect(0).out();
    assert!(nss.contains("mymachines"), "{nss}");
    let machine = Machine::new();
    let found = call("getent", ["ahosts", &machine.name]).out();
    assert_eq!(
        found, "",
        "an address of the machine that the host can't reach, or the host's own"
    );
}

#[test]
fn host_without_a_default_route_works() {
    let _change = change_routes("ip route delete default; ip -6 route delete default");
    let machine = machine();
    machine.run(["true"]).expect(0);
    // The outside is on the host's own link.
    expect_answer(&machine, SERVER, PORT);
}

#[test]
fn uplink_may_come_and_go_while_a_machine_runs() {
    let change = change_routes(
        "ip route delete default; ip -6 route delete default; ip link set uplink down",
    );
    let machine = machine();
    assert_eq!(answer(&machine, SERVER, PORT), "");
    drop(change);
    wait_until("the uplink is back", Duration::from_secs(30), || {
        answer(&machine, SERVER, PORT) == ANSWER
    });
}

#[test]
fn host_with_ipv6_alone_works() {
    let _change =
        change_routes("ip route delete default; ip address delete 192.0.2.1/24 dev uplink");
    let machine = machine();
    expect_answer(&machine, SERVER_IPV6, PORT);
}

#[test]
fn second_uplink_is_used_by_its_routes() {
    outside::ensure();
    let _change = Change::make(
        "ip link add second type veth peer name eth1 netns outside
         ip address add 198.51.100.1/24 dev second
         ip link set second up
         ip -n outside address add 198.51.100.254/24 dev eth1
         ip -n outside link set eth1 up
         ip route add default via 198.51.100.254 metric 500",
        "ip link delete second",
    );
    let machine = machine();
    expect_answer(&machine, SERVER, PORT);
    expect_answer(&machine, "198.51.100.254", PORT);
}

/// Starts a DNS server on the host that knows [`NAME`], at `address`, and makes it the host's only
/// resolver.
fn resolver_at(address: &str) -> Change {
    outside::ensure();
    sh(&format!(
        "set -e
         cp --no-dereference /etc/resolv.conf /run/resolv.conf.before
         systemd-run --quiet --collect --unit=host-dns dnsmasq --keep-in-foreground --conf-file=/dev/null --no-resolv --no-hosts \
             --user=root --listen-address={address} --bind-interfaces --address=/{NAME}/{SERVER}
         echo nameserver {address} >/etc/resolv.conf"
    ))
    .expect(0);
    wait_for_resolver();
    Change("systemctl stop host-dns; mv /run/resolv.conf.before /etc/resolv.conf")
}

#[test]
fn resolver_on_the_loopback_serves_machines() {
    let _resolver = resolver_at("127.0.0.1");
    let _servers = servers_on_the_host();
    let machine = machine();
    assert_eq!(resolves(&machine), SERVER);
    // pasta forwards only the port of DNS from this address to the host.
    let resolver = machine.sh("awk '/^nameserver/ { print $2 }' /etc/resolv.conf");
    assert_eq!(answer(&machine, resolver.out().trim(), 8001), "");
}

#[test]
fn resolver_on_the_hosts_own_address_serves_machines() {
    let _resolver = resolver_at(HOST);
    let machine = machine();
    assert_eq!(resolves(&machine), SERVER);
}

#[test]
fn systemd_resolved_serves_machines() {
    outside::ensure();
    sh(&format!(
        "set -e
         cp --no-dereference /etc/resolv.conf /run/resolv.conf.before
         systemctl start systemd-resolved
         resolvectl dns uplink {SERVER}
         resolvectl domain uplink '~.'
         ln --symbolic --force /run/systemd/resolve/stub-resolv.conf /etc/resolv.conf"
    ))
    .expect(0);
    let _change = Change(
        "rm /etc/resolv.conf; mv /run/resolv.conf.before /etc/resolv.conf; systemctl stop systemd-resolved",
    );
    wait_for_resolver();
    for options in [&["--init=stub"][..], &[]] {
        assert_eq!(resolves(&Machine::with(options)), SERVER, "{options:?}");
    }
}

#[test]
fn firewall_that_drops_input_does_not_matter() {
    outside::ensure();
    let _change = Change::make(
        "nft -f - <<'END'
table inet stock {
    chain input {
        type filter hook input priority filter; policy drop;
        ct state established,related accept
        iifname lo accept
        meta l4proto ipv6-icmp accept
    }
}
END",
        "nft delete table inet stock",
    );
    let machine = machine();
    expect_answer(&machine, SERVER, PORT);
    assert_eq!(resolves(&machine), SERVER);
}

/// Starts two servers on the host itself, on ports 8001 and 8002, which send [`ANSWER`] to every
/// client.
fn servers_on_the_host() -> Change {
    outside::ensure();
    for port in [8001, 8002] {
        sh(&format!(
            "systemd-run --quiet --collect --unit=host-server-{port} \
             socat TCP6-LISTEN:{port},ipv6only=0,reuseaddr,fork 'SYSTEM:echo {ANSWER}'"
        ))
        .expect(0);
        let own = connect(HOST, port);
        wait_until("the host's server answers", Duration::from_secs(30), || {
            sh(&own).out().trim() == ANSWER
        });
    }
    Change("systemctl stop host-server-8001 host-server-8002")
}

#[test]
fn host_is_closed_except_for_allowed_ports() {
    let _servers = servers_on_the_host();
    let closed = machine();
    let all = Machine::with(&["--init=stub", "--allow-host=192.0.2.1"]);
    let one = Machine::with(&[
        "--init=stub",
        "--allow-host=192.0.2.0/24:8002",
        "--allow-host=[2001:db8::1]:8002",
    ]);
    let cases = [
        (&closed, SERVER, PORT, ANSWER),
        (&closed, HOST, 8001, ""),
        (&closed, "2001:db8::1", 8001, ""),
        (&closed, "127.0.0.1", 8001, ""),
        (&all, HOST, 8001, ANSWER),
        (&all, "2001:db8::1", 8001, ""),
        (&one, HOST, 8001, ""),
        (&one, HOST, 8002, ANSWER),
        (&one, "2001:db8::1", 8001, ""),
        (&one, "2001:db8::1", 8002, ANSWER),
    ];
    // A refused connection takes as long as its time limit.
    std::thread::scope(|scope| {
        for (machine, address, port, expected) in cases {
            scope.spawn(move || {
                if expected == ANSWER {
                    expect_answer(machine, address, port);
                } else {
                    assert_eq!(answer(machine, address, port), expected, "{address} {port}");
                }
            });
        }
    });
}

#[test]
fn addresses_that_the_host_gets_later_are_closed_to_machines_without_an_init() {
    let _servers = servers_on_the_host();
    let machine = Machine::with(&["--init=none"]);
    let _change = Change::make(
        "ip address add 192.0.2.77/32 dev lo",
        "ip address delete 192.0.2.77/32 dev lo",
    );
    assert_eq!(
        sh(&connect("192.0.2.77", 8001)).out().trim(),
        ANSWER,
        "the host itself"
    );
    expect_answer(&machine, SERVER, PORT);
    assert_eq!(answer(&machine, "192.0.2.77", 8001), "");
}

#[test]
fn ssh_by_name_reaches_the_machine_or_nothing() {
    outside::ensure();
    let version = sh("systemctl --version | sed -n '1s/^systemd \\([0-9]*\\).*/\\1/p'").out();
    let machine = Machine::new();
    sh("test -e /root/.ssh/id_ed25519 || ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519")
        .expect(0);
    let key = std::fs::read_to_string("/root/.ssh/id_ed25519.pub").unwrap();
    machine
        .sh(&format!(
            "ssh-keygen -A && mkdir -p /root/.ssh && echo '{}' >/root/.ssh/authorized_keys",
            key.trim()
        ))
        .expect(0);
    let ssh = |target: &str| {
        sh(&format!(
            "timeout 60 ssh -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o BatchMode=yes {target} hostname"
        ))
    };
    let by_address = ssh(&format!("root@{}", machine.name));
    assert_ne!(by_address.code(), 0, "{}", by_address.describe());
    let version: u32 = version.trim().parse().unwrap();
    // systemd-ssh-proxy knows sockets since systemd 256.
    let target = match version {
        0..256 => None,
        256..258 => Some(format!(
            "unix/run/systemd/nspawn/unix-export/{}/ssh",
            machine.name
        )),
        _ => Some(format!(
            "unix/run/systemd/nspawn/{}/unix-export/ssh",
            machine.name
        )),
    };
    if let Some(target) = target {
        assert_eq!(ssh(&target).expect(0).out().trim(), machine.name);
    }
    call("nspawn-cleanup", [&machine.name]).expect(0);
    assert_eq!(
        sh(&format!(
            "find /run/systemd/nspawn | grep -F {}",
            machine.name
        ))
        .out(),
        "",
        "something is left"
    );
}

#[test]
fn job_of_a_gitlab_on_this_host_is_warned() {
    outside::ensure();
    std::fs::write(
        "/run/response.json",
        r#"{"id": 1, "runner_info": {"timeout": 600}}"#,
    )
    .unwrap();
    let prepared = |server: &str, options: &str| {
        sh(&format!(
            "export CUSTOM_ENV_CI_JOB_ID=1 CUSTOM_ENV_CI_SERVER_HOST={server} JOB_RESPONSE_FILE=/run/response.json
             nspawn-prepare --init=stub --default-image={} {options}; status=$?
             nspawn-cleanup; exit $status",
            image()
        ))
        .expect(0)
        .err()
    };
    let warning = "is this host itself (192.0.2.1)";
    let warned = prepared(HOST, "");
    assert!(
        warned.contains(warning) && warned.contains("--allow-host=192.0.2.1"),
        "{warned}"
    );
    let allowed = prepared(HOST, "--allow-host=192.0.2.1:443");
    assert!(!allowed.contains(warning), "{allowed}");
    let elsewhere = prepared(NAME, "");
    assert!(!elsewhere.contains(warning), "{elsewhere}");
}

#[test]
fn image_argument_file_may_allow_a_port() {
    let _servers = servers_on_the_host();
    let file = format!("/etc/nspawn-ci/images/{}.args", image());
    let _change = Change::make(
        &format!("mkdir -p /etc/nspawn-ci/images; echo --allow-host={HOST}:8002 >{file}"),
        "rm -r /etc/nspawn-ci",
    );
    let machine = machine();
    expect_answer(&machine, HOST, 8002);
    assert_eq!(answer(&machine, HOST, 8001), "");
}
