//! Images whose services wait for the network.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use nspawn_tests::Machine;

use crate::images::Name;

/// Time limit for a boot, which is below that of the service that waits.
const LIMIT: Duration = Duration::from_secs(30);

/// Service that needs the network, and records the routes at its start.
const SERVICE: &str = "[Unit]\nWants=network-online.target\nAfter=network-online.target\n\
    [Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=sh -c 'ip route >/run/routes'\n";
const WAIT: &str = "systemd-networkd-wait-online.service";

/// Makes a copy of the test host's image in which systemd-networkd configures an interface that no
/// machine of these networks has, and a service waits for that.
fn image(kind: &str) -> Name {
    let name = Name::copy(kind);
    let directory = name.path("/etc/systemd");
    let write = |path: &str, text: &str| {
        let path = format!("{directory}/{path}");
        fs::create_dir_all(path.rsplit_once('/').unwrap().0).unwrap();
        fs::write(path, text).unwrap();
    };
    write(
        "network/host0.network",
        "[Match]\nName=host0\n[Network]\nDHCP=yes\n",
    );
    write("system/needs.service", SERVICE);
    // Cloud images shorten the wait like this.
    write(
        "system/systemd-networkd-wait-online.service.d/override.conf",
        "[Service]\nExecStart=\nExecStart=/usr/lib/systemd/systemd-networkd-wait-online --any --timeout=60\n",
    );
    for (target, unit) in [
        ("multi-user.target", "systemd-networkd.service"),
        ("network-online.target", WAIT),
        ("multi-user.target", "needs.service"),
    ] {
        let wants = format!("{directory}/system/{target}.wants");
        fs::create_dir_all(&wants).unwrap();
        let source = if unit == "needs.service" {
            format!("/etc/systemd/system/{unit}")
        } else {
            format!("/usr/lib/systemd/system/{unit}")
        };
        let link = format!("{wants}/{unit}");
        let _ = fs::remove_file(&link);
        symlink(source, link).unwrap();
    }
    name
}

/// Starts a machine, and returns the routes that the service has seen.
#[track_caller]
fn routes(name: &Name, network: &str) -> String {
    let begin = Instant::now();
    let machine: Machine = name.machine(&[network]);
    assert!(begin.elapsed() < LIMIT, "{network}: {:?}", begin.elapsed());
    machine
        .sh("systemctl is-active systemd-networkd needs && systemctl is-system-running")
        .expect(0);
    // The service is skipped in a machine that may not configure a network (ConditionCapability=).
    let ended = if network == "--network=host" { 3 } else { 0 };
    machine
        .sh(&format!("systemctl is-active {WAIT}"))
        .expect(ended);
    machine.run(["cat", "/run/routes"]).expect(0).out()
}

#[test]
fn machine_does_not_wait_for_a_network_that_the_host_configures() {
    let name = image("wait");
    let nat = routes(&name, "--network=nat");
    assert!(nat.contains("default via"), "{nat}");
    assert_eq!(routes(&name, "--network=none"), "");
    routes(&name, "--network=host");
}

/// Tests a machine that configures its network itself, for which the host has no DHCP server.
#[test]
fn boot_that_waits_for_the_network_names_the_unit() {
    let name = image("wait-veth");
    let error = name.expect_refused(
        &["--network=veth", "--timeout=15s"],
        "it did not boot within 15 s",
    );
    assert!(error.contains(WAIT), "{error}");
}
