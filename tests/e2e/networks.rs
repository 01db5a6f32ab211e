//! Each kind of network that a machine can have.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::process::Command;

use nspawn_tests::{Machine, call, finish, image, left_of, sh, skip};

fn links(machine: &Machine) -> Vec<String> {
    let list = machine.sh("ls /sys/class/net").expect(0).out();
    list.split_whitespace().map(str::to_owned).collect()
}

/// A network object of the host that exists for one test.
struct HostObject(String);

impl HostObject {
    fn new(add: &str, delete: &str) -> Self {
        sh(add).expect(0);
        Self(delete.to_owned())
    }
}

impl Drop for HostObject {
    fn drop(&mut self) {
        let _ = sh(&self.0);
    }
}

#[test]
fn network_none_has_only_a_loopback() {
    let machine = Machine::with(&["--network=none"]);
    assert_eq!(links(&machine), ["lo"]);
    assert!(!machine.paths().network_cgroup().exists());
}

#[test]
fn network_host_reaches_the_loopback_of_the_host() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let connect = format!(
        "bash -c 'exec 3<>/dev/tcp/127.0.0.1/{}'",
        server.local_addr().unwrap().port()
    );
    let separate = Machine::new();
    separate.sh(&connect).expect(1);
    Machine::with(&["--network=host"]).sh(&connect).expect(0);
}

#[test]
fn nat_reaches_the_outside_and_resolves_names() {
    let machine = Machine::new();
    let host = sh("awk '/^nameserver/ { print $2 }' /etc/resolv.conf")
        .expect(0)
        .out();
    assert_eq!(
        machine
            .sh("awk '/^nameserver/ { print $2 }' /etc/resolv.conf")
            .expect(0)
            .out(),
        host
    );
    // Resolution depends on the network of the host.
    let name = "deb.debian.org";
    if sh(&format!("getent hosts {name}")).code() == 0 {
        machine.run(["getent", "hosts", name]).expect(0);
    } else {
        skip("the host resolves no name");
    }
}

#[test]
fn pasta_ends_with_its_machine() {
    for end in [
        "nspawn-cleanup NAME",
        "machinectl terminate NAME",
        "systemctl kill --signal=KILL nspawn-NAME",
    ] {
        let machine = Machine::new();
        let cgroup = machine.paths().network_cgroup();
        assert!(cgroup.exists());
        sh(&end.replace("NAME", &machine.name)).expect(0);
        let wait = format!(
            "timeout 20 sh -c 'while [ -e {} ]; do sleep 0.05; done'",
            cgroup.display()
        );
        sh(&wait).expect(0);
    }
}

#[test]
fn machine_goes_on_and_is_removed_without_pasta() {
    let machine = Machine::new();
    sh(&format!(
        "systemctl kill --signal=KILL pasta-{}",
        machine.name
    ))
    .expect(0);
    machine.run(["true"]).expect(0);
    call("nspawn-cleanup", [&machine.name]).expect(0);
    assert_eq!(left_of(&machine.name), "");
}

#[test]
fn missing_pasta_names_its_package() {
    let dir = std::env::temp_dir().join(format!("e2e-no-pasta-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    for program in ["systemd-nspawn", "systemd-run", "systemctl"] {
        symlink(
            sh(&format!("command -v {program}"))
                .expect(0)
                .out()
                .trim_end(),
            dir.join(program),
        )
        .unwrap();
    }
    let program = sh("command -v nspawn-prepare").expect(0).out();
    let done = finish(
        Command::new(program.trim_end())
            .arg(image())
            .env("PATH", &dir),
        b"",
    );
    fs::remove_dir_all(&dir).unwrap();
    done.expect_error(1, "install the package passt");
}

#[test]
fn veth_bridge_and_zone_work() {
    let id = std::process::id();
    let bridge = format!("e2e{id}");
    let _bridge = HostObject::new(
        &format!("ip link add {bridge} type bridge"),
        &format!("ip link delete {bridge}"),
    );
    for network in [
        "veth".to_owned(),
        format!("bridge={bridge}"),
        format!("zone=z{id}"),
    ] {
        let machine = Machine::with(&[&format!("--network={network}")]);
        assert_eq!(links(&machine), ["host0", "lo"], "{network}");
    }
}

#[test]
fn existing_network_namespace_needs_the_uids_of_the_host() {
    let name = format!("e2e-{}", std::process::id());
    let _namespace = HostObject::new(
        &format!("ip netns add {name}"),
        &format!("ip netns delete {name}"),
    );
    sh(&format!("ip -n {name} link add mark type bridge")).expect(0);
    let network = format!("--network=namespace=/run/netns/{name}");
    call("nspawn-prepare", [&*network, &image()]).expect_error(1, "add --private-users=no");
    let machine = Machine::with(&[&network, "--private-users=no"]);
    machine.sh("grep mark /proc/net/dev").expect(0);
}

/// Prints the groups that may create ICMP sockets, and whether a user of the last group can.
const PING: &str = "tr '\\t' ' ' </proc/sys/net/ipv4/ping_group_range; last=$(awk '{ print $1 + $3 - 1 }' /proc/self/gid_map | tail -n 1); \
    echo $last; setpriv --reuid=1000 --regid=$last --clear-groups --inh-caps=-all --bounding-set=-all \
    perl -MSocket -e 'socket(S, AF_INET, SOCK_DGRAM, 1) or die qq($!\\n); print qq(ping\\n)'";

/// Changes a setting of the machine's own namespace, and creates a raw socket.
const OWN_SETTINGS: &str = "set -e; cd /proc/sys/net; echo 1 >ipv4/ip_forward; echo 77 >core/somaxconn; \
    echo 1 >ipv6/conf/all/forwarding; cat ipv4/ip_forward core/somaxconn ipv6/conf/all/forwarding; \
    perl -MSocket -e 'socket(S, AF_INET, SOCK_RAW, 1) or die qq($!\\n)'";

#[test]
fn settings_of_the_own_network_can_be_changed_and_all_users_may_ping() {
    let host = || {
        sh("cd /proc/sys/net; cat ipv4/ip_forward core/somaxconn ipv6/conf/all/forwarding ipv4/ping_group_range").out()
    };
    let before = host();
    for init in ["--init=systemd", "--init=stub", "--init=none"] {
        for network in ["--network=nat", "--network=none", "--network=veth"] {
            let machine = Machine::with(&[init, network]);
            let done = machine.sh(PING).expect(0);
            let out = done.out();
            let lines: Vec<&str> = out.lines().collect();
            assert_eq!(
                lines,
                [&format!("0 {}", lines[1]), lines[1], "ping"],
                "{init} {network}"
            );
            let done = machine.sh(OWN_SETTINGS).expect(0);
            assert_eq!(done.out(), "1\n77\n1\n", "{init} {network}");
        }
        for options in [
            &[init, "--network=host"][..],
            &[init, "--network=host", "--private-users=no"],
        ] {
            let machine = Machine::with(options);
            machine
                .sh("for f in /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/ping_group_range; do cat $f | tee $f && exit 1; done; exit 0")
                .expect(0);
        }
        assert_eq!(host(), before, "{init}");
    }
}
