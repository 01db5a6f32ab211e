//! Users of a machine: each has a separate UID on the host, and is an ordinary user in the machine.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

use nspawn_common::config::private_users::{IdRange, PICKED_SIZE, parse_range};
use nspawn_tests::{Machine, call, image, left_of};

use crate::images::Name;

/// Returns the machine's UID range on the host.
fn range(machine: &Machine) -> IdRange {
    let maps = machine
        .sh("cat /proc/self/uid_map /proc/self/gid_map")
        .expect(0)
        .out();
    let maps: Vec<Vec<u32>> = maps
        .lines()
        .map(|map| {
            map.split_whitespace()
                .map(|number| number.parse().unwrap())
                .collect()
        })
        .collect();
    assert!(
        maps.len() == 2 && maps[0] == maps[1] && maps[0][0] == 0,
        "{maps:?}"
    );
    IdRange {
        base: maps[0][1],
        size: maps[0][2],
    }
}

/// Returns a path to the machine's root, in the mount namespace of its supervisor.
fn root(machine: &Machine) -> PathBuf {
    machine.path_at_supervisor(&machine.paths().root_mount())
}

#[test]
fn machines_have_separate_uid_ranges() {
    let machines = [Machine::new(), Machine::new()];
    let ranges = machines.each_ref().map(range);
    assert!(
        ranges.iter().all(|ids| ids.size == PICKED_SIZE),
        "{ranges:?}"
    );
    let [one, other] = ranges.map(|ids| ids.base);
    assert!(
        one.abs_diff(other) >= PICKED_SIZE && one.min(other) >= PICKED_SIZE,
        "{one} and {other}"
    );
    for (machine, base) in machines.iter().zip([one, other]) {
        machine
            .sh("touch /root/roots /root/users && chown 1000:100 /root/users")
            .expect(0);
        for (name, uid, gid) in [("root/roots", 0, 0), ("root/users", 1000, 100)] {
            let file = fs::metadata(root(machine).join(name)).unwrap();
            assert_eq!((file.uid(), file.gid()), (base + uid, base + gid), "{name}");
        }
    }
}

#[test]
fn files_of_the_image_keep_their_owners() {
    let machine = Machine::new();
    for name in ["etc/passwd", "etc/shadow", "usr/bin/passwd", "var/mail"] {
        let file = fs::metadata(Path::new("/var/lib/machines").join(image()).join(name)).unwrap();
        let expected = format!("{} {} {:o}\n", file.uid(), file.gid(), file.mode() & 0o7777);
        assert_eq!(
            machine
                .run(["stat", "--format=%u %g %a", &format!("/{name}")])
                .expect(0)
                .out(),
            expected,
            "{name}"
        );
        assert_eq!(file.uid(), 0, "{name} in the image itself");
    }
    assert_eq!(
        machine
            .sh("find /bin/ /etc /home /root /srv /usr /var -xdev \\( -nouser -o -nogroup -o -user nobody \\)")
            .expect(0)
            .out(),
        ""
    );
}

#[test]
fn packages_are_built_and_installed_with_their_owners() {
    let script = "set -e; cd /tmp; mkdir -p p/DEBIAN p/usr/share/own; touch p/usr/share/own/file; chown 7:8 p/usr/share/own/file\n\
        printf 'Package: own\\nVersion: 1\\nArchitecture: all\\nMaintainer: x <x@example.com>\\nDescription: x\\n' >p/DEBIAN/control\n\
        printf '#!/bin/sh\\nuseradd --system own && chown own: /usr/share/own\\n' >p/DEBIAN/postinst; chmod 755 p/DEBIAN/postinst\n\
        dpkg-deb --build p p.deb >/dev/null; dpkg --install p.deb >/dev/null; stat --format=%u:%g /usr/share/own/file\n\
        stat --format=%U /usr/share/own; dpkg --verify own";
    assert_eq!(Machine::new().sh(script).expect(0).out(), "7:8\nown\n");
}

/// Installs sudo and setcap from the archive, as apt's sandbox user, and then uses them.
#[test]
fn sudo_and_capabilities_work() {
    let machine = Machine::new();
    machine
        .sh("export DEBIAN_FRONTEND=noninteractive; apt-get update && apt-get install --yes --no-install-recommends sudo libcap2-bin")
        .expect(0);
    let script = "useradd --create-home ann && echo 'ann ALL=(root) NOPASSWD: ALL' >/etc/sudoers.d/ann\n\
        sudo --user=ann id --user --name; su ann -c 'sudo id --user'; su - ann -c 'id --user --name; pwd'\n\
        cp /usr/bin/cat /usr/local/bin/reader; setcap cap_dac_read_search+ep /usr/local/bin/reader\n\
        getcap /usr/local/bin/reader; su ann -c '/usr/local/bin/reader /etc/shadow' | grep --count ^root:";
    let expected = "ann\n0\nann\n/home/ann\n/usr/local/bin/reader cap_dac_read_search=ep\n1\n";
    assert_eq!(machine.sh(script).expect(0).out(), expected);
}

#[test]
fn setuid_program_runs_as_its_owner() {
    let script = "cp /usr/bin/id /usr/local/bin/whose\n\
        for owner in 0 1234; do chown $owner /usr/local/bin/whose && chmod 4755 /usr/local/bin/whose\n\
        setpriv --reuid=1000 --regid=1000 --clear-groups /usr/local/bin/whose --user; done";
    assert_eq!(Machine::new().sh(script).expect(0).out(), "0\n1234\n");
}

#[test]
fn dynamic_users_and_tmpfiles_work() {
    let machine = Machine::new();
    machine.run(["systemd-tmpfiles", "--create"]).expect(0);
    let run = "systemd-run --quiet --wait --pipe --property=DynamicUser=yes --property=StateDirectory=own --unit=dynamic";
    let script = format!(
        "{run} sh -c 'id --user; touch /var/lib/own/file && stat --format=%u /var/lib/own/file'"
    );
    let users = machine.sh(&script).expect(0).out();
    let users: Vec<u32> = users.lines().map(|user| user.parse().unwrap()).collect();
    // The range of dynamic users in systemd (UIDS-GIDS.md).
    assert!(
        (61184..65520).contains(&users[0]) && users == [users[0]; 2],
        "{users:?}"
    );
    assert_eq!(
        machine
            .sh("systemctl is-system-running; systemctl --failed --no-legend")
            .expect(0)
            .out(),
        "running\n"
    );
}

#[test]
fn files_written_to_a_bind_belong_to_its_owner() {
    let directory = std::env::temp_dir().join(format!("e2e-users-{}", std::process::id()));
    fs::create_dir(&directory).unwrap();
    chown(&directory, Some(1000), Some(1000)).unwrap();
    let machine = Machine::with(&[&format!("--bind={}:/shown", directory.display())]);
    machine
        .sh("touch /shown/file && mkdir /shown/directory && stat --format=%u /shown /shown/file")
        .expect(0);
    for name in ["file", "directory"] {
        let file = fs::metadata(directory.join(name)).unwrap();
        assert_eq!((file.uid(), file.gid()), (1000, 1000), "{name}");
    }
    assert_eq!(
        machine
            .sh("stat --format=%u:%g /shown /shown/file")
            .expect(0)
            .out(),
        "0:0\n0:0\n"
    );
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn private_users_no_uses_the_uids_of_the_host() {
    let machine = Machine::with(&["--private-users=no"]);
    assert_eq!(
        machine.sh("tr -s ' ' </proc/self/uid_map").expect(0).out(),
        " 0 0 4294967295\n"
    );
    machine.run(["touch", "/root/file"]).expect(0);
    assert_eq!(
        fs::metadata(root(&machine).join("root/file"))
            .unwrap()
            .uid(),
        0
    );
}

#[test]
fn chosen_uid_range_is_given_to_one_machine() {
    for text in ["1966080000", "1966080000:131072", "3221225472:1048576"] {
        check_chosen_range(text);
    }
}

fn check_chosen_range(text: &str) {
    let option = format!("--private-users={text}");
    let machine = Machine::with(&[&option]);
    assert_eq!(range(&machine), parse_range(text).unwrap());
    let name = format!("{}-too", machine.name);
    let second = || call("nspawn-prepare", ["--name", &name, &option, &image()]);
    let done = second();
    done.expect_err("another machine, /etc/subuid");
    done.expect_error(1, "");
    assert_eq!(left_of(&name), "");
    drop(machine);
    second().expect(0);
    drop(Machine { name });
}

#[test]
fn invalid_uid_ranges_are_refused() {
    for bad in ["0", "65537", "4294901760", "655360:1", "655360:", "all"] {
        let done = call(
            "nspawn-prepare",
            [&format!("--private-users={bad}"), &image()],
        );
        done.expect_error(1, "--private-users");
    }
}

/// A script that uses IDs above 65535 in each way that jobs do, for the machine's root.
const HIGH_IDS: &str = r#"set -e; cd /root
touch file && chown 1000000:1000000 file && stat --format=%u:%g file
mkdir tree && touch tree/vendor && tar --create --owner=95607 --group=95607 --file=a.tar tree
tar --extract --same-owner --file=a.tar && stat --format=%u tree/vendor
setpriv --reuid=200000 --regid=200000 --clear-groups sh -c 'id --user; touch /tmp/own; stat --format=%u /tmp/own'
setpriv --reuid=1000 --regid=1000 --clear-groups unshare --user --map-root-user id --user
"#;

#[test]
fn ids_above_65535_work_with_every_init() {
    for init in ["systemd", "stub", "none"] {
        let machine = Machine::with(&["--init", init]);
        assert_eq!(
            machine.sh(HIGH_IDS).expect(0).out(),
            "1000000:1000000\n95607\n200000\n200000\n0\n",
            "{init}"
        );
    }
}

/// Runs a command with the subordinate IDs of a user, as rootless containers do (newuidmap(1)).
#[test]
fn subordinate_ids_of_users_work() {
    let machine = Machine::new();
    machine
        .sh("export DEBIAN_FRONTEND=noninteractive; apt-get update && apt-get install --yes --no-install-recommends uidmap")
        .expect(0);
    let script = "useradd --create-home ann && grep ^ann:100000:65536 /etc/subuid >/dev/null\n\
        cd ~ann && su ann -c 'unshare --map-auto --map-root-user sh -c \"touch file && chown 1:1 file && id --user\"'\n\
        stat --format=%u:%g file";
    assert_eq!(machine.sh(script).expect(0).out(), "0\n100000:100000\n");
}

#[test]
fn owners_above_65535_in_an_image_are_shown() {
    let name = Name::copy("high-owners");
    name.sh("touch $name/opt/high; chown 100000:1000000 $name/opt/high");
    let machine = name.machine(&[]);
    let script = "stat --format=%u:%g /opt/high && echo x >>/opt/high && chown 5 /opt/high && stat --format=%u /opt/high";
    assert_eq!(machine.sh(script).expect(0).out(), "100000:1000000\n5\n");
}

/// Renames a directory of the image by rename(2), which mv(1) would replace by a copy.
const RENAME: &str = r#"rename "/usr/share/doc", "/usr/share/renamed" or die "rename: $!\n";
rename "/usr/share/renamed/base-files", "/root/moved" or die "rename: $!\n";
print -e "/root/moved/copyright" && ! -e "/usr/share/doc" ? "renamed\n" : "lost\n""#;

#[test]
fn directories_of_the_image_are_renamed_with_every_overlay() {
    for init in ["systemd", "stub", "none"] {
        for layer in ["--layer=disk", "--layer=tmpfs", "--layer-size=infinity"] {
            let machine = Machine::with(&["--init", init, layer]);
            let done = machine.run(["perl", "-e", RENAME]);
            assert_eq!(done.expect(0).out(), "renamed\n", "{init} {layer}");
            let seen = machine.sh("test -e /root/moved/copyright; test ! -e /usr/share/doc");
            seen.expect(0);
        }
    }
}
