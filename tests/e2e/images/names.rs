//! Resolution of names in images whose files for it are missing, links or something else.

use std::fs;

use nspawn_tests::{Machine, image, sh};

use super::Name;

const INITS: [&str; 3] = ["--init=systemd", "--init=stub", "--init=none"];

/// Prints the name servers of a regular resolv.conf(5), and looks up a name.
const LOOK_UP: &str = "test -f /etc/resolv.conf -a ! -L /etc/resolv.conf || ls -ld /etc/resolv.conf; \
    stat --format=%u:%a /etc/resolv.conf; awk '/^nameserver/ { print $2 }' /etc/resolv.conf; \
    timeout 20 getent hosts deb.debian.org >/dev/null && echo found";

/// Commands that spoil the image's resolv.conf(5), in its /etc.
const SPOILERS: [&str; 11] = [
    "rm resolv.conf",
    "ln -sf ../run/systemd/resolve/stub-resolv.conf resolv.conf",
    "ln -sf /run/NetworkManager/resolv.conf resolv.conf",
    "ln -sf /run/resolvconf/resolv.conf resolv.conf",
    "ln -sf ../../../../../../../../run/e2e-names-victim resolv.conf",
    "rm resolv.conf; ln -s resolv.conf resolv.conf",
    "rm resolv.conf; mkfifo resolv.conf",
    "mkfifo fifo; ln -sf fifo resolv.conf",
    "rm resolv.conf; mkdir -p resolv.conf/full/of; touch resolv.conf/full/of/files",
    "rm resolv.conf; touch resolv.conf; chown 1234:1234 resolv.conf; chmod 400 resolv.conf",
    "chown 1234 . resolv.conf; chmod 700 .",
];

/// Gives the image its /etc back, and runs commands there.
fn spoil(name: &Name, spoiler: &str) {
    name.sh(&format!(
        "rm -r $name/etc; cp --archive $(realpath {})/etc $name/etc; cd $name/etc; {spoiler}",
        image()
    ));
}

#[test]
fn resolv_conf_of_any_kind_is_replaced() {
    const VICTIM: &str = "/run/e2e-names-victim";
    fs::write(VICTIM, "intact").unwrap();
    let expected = sh(
        "echo 0:644; awk '/^nameserver/ { print $2 }' /etc/resolv.conf; \
         timeout 20 getent hosts deb.debian.org >/dev/null && echo found",
    )
    .expect(0)
    .out();
    let name = Name::copy("resolv-conf");
    for spoiler in SPOILERS {
        spoil(&name, spoiler);
        for init in INITS {
            for options in [&[init][..], &[init, "--network=host"]] {
                let done = name.machine(options).sh(LOOK_UP);
                assert_eq!(done.out(), expected, "{spoiler} {options:?}");
            }
        }
        let done = name.machine(&["--init=stub", "--layer=none"]).sh(LOOK_UP);
        assert_eq!(done.out(), expected, "{spoiler} --layer=none");
        name.machine(&["--init=stub", "--network=none"])
            .run(["true"])
            .expect(0);
        assert_eq!(fs::read_to_string(VICTIM).unwrap(), "intact", "{spoiler}");
    }
    fs::remove_file(VICTIM).unwrap();
}

const INSTALL_RESOLVED: &str = "export DEBIAN_FRONTEND=noninteractive; apt-get update && \
    apt-get install --yes --no-install-recommends systemd-resolved libnss-resolve";

const LOOK_UP_BY_LINK: &str =
    "test -L /etc/resolv.conf && timeout 20 getent hosts deb.debian.org >/dev/null";

#[test]
fn names_are_resolved_with_systemd_resolved() {
    for init in ["--init=systemd", "--init=stub"] {
        let machine = Machine::with(&[init]);
        machine.sh(INSTALL_RESOLVED).expect(0);
        machine.sh(LOOK_UP_BY_LINK).expect(0);
    }
    let name = Name::copy("resolved");
    name.sh(&format!(
        "systemd-nspawn --quiet --pipe --directory=$name --resolv-conf=replace-host sh -c '{INSTALL_RESOLVED}' </dev/null >&2; test -L $name/etc/resolv.conf"
    ));
    for init in INITS {
        for options in [&[init][..], &[init, "--network=host"]] {
            let done = name
                .machine(options)
                .sh("timeout 20 getent hosts deb.debian.org >/dev/null && echo found; systemctl is-system-running");
            assert!(
                done.out().starts_with("found\n"),
                "{options:?}: {}",
                done.describe()
            );
            if init == "--init=systemd" {
                done.expect_out("running");
            }
        }
    }
}

/// Prints the addresses of both names, with a server that never answers.
const OWN_NAMES: &str = "echo nameserver 192.0.2.1 >/tmp/r; cat /tmp/r >/etc/resolv.conf; \
    for name in localhost $(hostname); do timeout 3 getent ahostsv4 $name | awk 'NR == 1 { print $1 }'; done";

#[test]
fn own_names_are_known_without_a_server() {
    let name = Name::copy("hosts");
    for spoiler in [
        "rm hosts",
        "rm hosts; touch hosts",
        "rm hosts; echo '192.0.2.9 other # localhost' >hosts",
        "ln -sf ../run/no-hosts hosts",
        "rm hosts; mkfifo hosts",
        "rm hosts; mkdir -p hosts/full",
        "ln -sf ../../../../../../../../dev/zero hosts",
        "rm hosts; printf '127.0.0.1\\tlocalhost' >static; ln -s static hosts",
    ] {
        spoil(
            &name,
            &format!("{spoiler}; echo 'hosts: files dns' >nsswitch.conf"),
        );
        for init in INITS {
            let machine = name.machine(&[init]);
            let done = machine.sh(OWN_NAMES);
            assert_eq!(done.out(), "127.0.0.1\n127.0.1.1\n", "{spoiler} {init}");
            machine
                .sh("stat --format=%u:%a /etc/hosts | grep -x 0:644")
                .expect(0);
        }
        let machine = name.machine(&["--init=stub", "--layer=none", "--network=none"]);
        let done = machine.sh("getent hosts $(hostname)");
        done.expect_out("127.0.1.1");
    }
}

#[test]
fn hosts_of_an_image_that_knows_its_names_stays_as_it_is() {
    let hosts = |machine: &Machine| machine.run(["cat", "/etc/hosts"]).expect(0).out();
    let of_image = fs::read_to_string(format!("/var/lib/machines/{}/etc/hosts", image())).unwrap();
    let machine = Machine::new();
    let nsswitch = machine.run(["cat", "/etc/nsswitch.conf"]).expect(0).out();
    if nsswitch.contains("myhostname") {
        assert_eq!(hosts(&machine), of_image);
    }
    let name = Name::copy("known");
    spoil(
        &name,
        "echo 'hosts: files dns' >nsswitch.conf; rm hosts; printf '127.0.0.1 localhost\\n::1 localhost\\n192.0.2.7 known' >hosts",
    );
    let machine = name.machine(&["--init=stub", "--name=known", "--replace"]);
    assert_eq!(
        hosts(&machine),
        "127.0.0.1 localhost\n::1 localhost\n192.0.2.7 known"
    );
}
