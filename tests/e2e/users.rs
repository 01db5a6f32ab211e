//! Users of a machine: each has a separate UID on the host, and is an ordinary user in the machine.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

use nspawn_common::config::private_users::RANGE_SIZE;
use nspawn_common::machine::name::MachineName;
use nspawn_common::machine::paths::MachinePaths;
use nspawn_common::machine::processes;
use nspawn_tests::{Machine, call, image, left_of};

/// Returns the first UID of the machine's range on the host.
fn base(machine: &Machine) -> u32 {
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
        maps.len() == 2 && maps[0] == maps[1] && maps[0][0] == 0 && maps[0][2] == RANGE_SIZE,
        "{maps:?}"
    );
    maps[0][1]
}

/// Returns a path to the machine's root, in the mount namespace of its supervisor.
fn root(machine: &Machine) -> PathBuf {
    let paths = MachinePaths::named(&MachineName::new(&machine.name).unwrap());
    format!(
        "/proc/{}/root{}",
        processes::supervisor(&paths).unwrap(),
        paths.root_mount().display()
    )
    .into()
}

#[test]
fn machines_have_separate_uid_ranges() {
    let machines = [Machine::new(), Machine::new()];
    let [one, other] = machines.each_ref().map(base);
    assert!(
        one.abs_diff(other) >= RANGE_SIZE && one.min(other) >= RANGE_SIZE,
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
    const BASE: &str = "1966080000";
    let option = format!("--private-users={BASE}");
    let machine = Machine::with(&[&option]);
    assert_eq!(base(&machine).to_string(), BASE);
    let name = format!("{}-too", machine.name);
    let second = || call("nspawn-prepare", ["--name", &name, &option, &image()]);
    let done = second();
    assert!(
        done.err().contains("another machine, /etc/subuid"),
        "{}",
        done.describe()
    );
    done.expect_error(1, "");
    assert_eq!(left_of(&name), "");
    drop(machine);
    second().expect(0);
    drop(Machine { name });
}

#[test]
fn invalid_uid_ranges_are_refused() {
    for bad in ["0", "65537", "4294901760", "all"] {
        let done = call(
            "nspawn-prepare",
            [&format!("--private-users={bad}"), &image()],
        );
        done.expect_error(1, "--private-users");
    }
}
