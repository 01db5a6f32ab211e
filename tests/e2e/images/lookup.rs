//! Lookup of images by name, which agrees with machinectl.

use std::path::Path;

use nspawn_common::image::lookup::SEARCH_PATH;
use nspawn_tests::{call, sh};

use super::Name;

/// Returns the image that `nspawn-prepare` finds for a name.
fn prepare_finds(name: &str) -> Option<String> {
    let done = call("nspawn-prepare", ["--dry-run", "--init=stub", name]);
    if done.status.code() == Some(1) {
        done.expect_error(1, "image");
        return None;
    }
    let commands = done.expect(0).out();
    let (_, rest) = commands.split_once("\"image_path\":\"").unwrap();
    Some(rest.split('"').next().unwrap().to_owned())
}

/// Returns the image that systemd-machined finds for a name.
fn machinectl_finds(name: &str) -> Option<String> {
    let done = call(
        "machinectl",
        ["show-image", "--property=Path", "--value", name],
    );
    let path = done.out().trim_end().to_owned();
    // machinectl does not resolve symlinks.
    (done.status.success() && !path.is_empty())
        .then(|| std::fs::canonicalize(&path).unwrap().display().to_string())
}

/// Returns the version of the host's systemd.
fn systemd_version() -> u32 {
    let version = sh("systemctl --version | sed -n '1s/^systemd \\([0-9]*\\).*/\\1/p'").out();
    version.trim().parse().unwrap()
}

/// Shell functions that create image trees and disk images.
const MAKERS: &str = "tree() { for path; do mkdir -p $path/usr; done; }; \
    raw() { for path; do mkdir -p $(dirname $path); truncate --size=1M $path; done; };";

/// Every version of systemd finds the same image.
const ANY: u32 = 0;
/// First version of systemd that knows versioned images.
const VERSIONS: u32 = 256;
/// First version of systemd that skips entries of another kind, such as a tree among disk images.
const KINDS: u32 = 258;
/// First version of systemd that knows stacks of layers.
const STACKS: u32 = 260;
/// No version of systemd finds the same image as we do.
const NEVER: u32 = u32::MAX;

/// Layouts of images: shell lines that create them, the path that the name `N` stands for, and the
/// first version of systemd that agrees.
const LAYOUTS: [(&str, &str, u32); 54] = [
    // Several images of one name in one directory.
    ("tree N", "N", ANY),
    ("raw N.raw", "N.raw", ANY),
    ("tree N; raw N.raw", "N", ANY),
    ("raw N.raw; tree N.v/N_1", "N.raw", ANY),
    ("raw N.raw.v/N_1.raw; tree N.v/N_1", "N.v/N_1", VERSIONS),
    ("raw N.raw.v/N_1.raw", "N.raw.v/N_1.raw", VERSIONS),
    ("tree N; mkdir N.v", "N", ANY),
    ("tree N.raw N.v/N_1", "N.v/N_1", VERSIONS),
    ("raw N; tree N.v/N_1", "N.v/N_1", VERSIONS),
    ("raw N N.raw", "N.raw", VERSIONS),
    (
        "mkdir N.v; raw N.raw.v/N_1.raw",
        "N.raw.v/N_1.raw",
        VERSIONS,
    ),
    ("raw N.v/x N.raw.v/N_1.raw", "N.raw.v/N_1.raw", VERSIONS),
    // Stacks of layers.
    ("mkdir -p N.mstack/layer@1", "N.mstack", STACKS),
    ("tree N; mkdir -p N.mstack/layer@1", "N", ANY),
    ("raw N.raw; mkdir -p N.mstack/layer@1", "N.raw", ANY),
    (
        "tree N.v/N_1; mkdir -p N.mstack/layer@1",
        "N.mstack",
        STACKS,
    ),
    ("raw N.mstack; tree N.v/N_1", "N.v/N_1", VERSIONS),
    // Versioned images.
    ("tree N.v/N_9 N.v/N_10 N.v/N_2", "N.v/N_10", VERSIONS),
    (
        "raw N.raw.v/N_9.raw N.raw.v/N_10.raw",
        "N.raw.v/N_10.raw",
        VERSIONS,
    ),
    (
        "tree N.v/N_1.2 N.v/N_1.10 N.v/N_1.10~rc1",
        "N.v/N_1.10",
        VERSIONS,
    ),
    (
        "tree N.v/N_1 N.v/.N_2 N.v/other_3 N.v/N",
        "N.v/N_1",
        VERSIONS,
    ),
    ("tree N.v/N_ N.v/N", "", ANY),
    ("tree N.v/N_1; raw N.v/N_2.raw N.v/N_3", "N.v/N_1", KINDS),
    (
        "raw N.raw.v/N_1.raw; tree N.raw.v/N_2.raw",
        "N.raw.v/N_1.raw",
        KINDS,
    ),
    ("tree N.v/N_1.raw", "N.v/N_1.raw", VERSIONS),
    ("tree N.v/N_1; raw N.raw.v/N_2.raw", "N.v/N_1", VERSIONS),
    // Versions with an architecture. An unknown architecture is part of the version.
    (
        "tree N.v/N_1_x86-64 N.v/N_2_s390x N.v/N_3_mips",
        "N.v/N_1_x86-64",
        VERSIONS,
    ),
    (
        "tree N.v/N_1_x86-64 N.v/N_1 N.v/N_1_x86",
        "N.v/N_1_x86-64",
        VERSIONS,
    ),
    ("tree N.v/N_1_x86-64 N.v/N_2_x86", "N.v/N_2_x86", VERSIONS),
    ("tree N.v/N_x86-64", "N.v/N_x86-64", VERSIONS),
    ("tree N.v/N_1_other N.v/N_0", "N.v/N_1_other", VERSIONS),
    ("tree N.v/N_2_s390x", "", ANY),
    // Versions with a boot counter.
    ("tree N.v/N_1 N.v/N_2+0-3 N.v/N_3+0", "N.v/N_1", VERSIONS),
    ("tree N.v/N_1 N.v/N_2+3-1", "N.v/N_2+3-1", VERSIONS),
    ("tree N.v/N_1+0 N.v/N_2+0", "N.v/N_2+0", VERSIONS),
    ("tree N.v/N_1+0 N.v/N_1+3", "N.v/N_1+3", VERSIONS),
    ("tree N.v/N_1+1 N.v/N_1+3", "N.v/N_1+3", VERSIONS),
    ("tree N.v/N_1+3-2 N.v/N_1+3-1", "N.v/N_1+3-1", VERSIONS),
    ("tree N.v/N_1 N.v/N_1+3", "N.v/N_1", VERSIONS),
    (
        "raw N.raw.v/N_1_x86-64+3-1.raw N.raw.v/N_0.raw",
        "N.raw.v/N_1_x86-64+3-1.raw",
        VERSIONS,
    ),
    // Symlinks.
    ("tree N.v/N_1 N.v/N_2; ln -s N.v/N_1 N", "N.v/N_1", ANY),
    ("tree N.d/x; ln -s N.d/x N", "N.d/x", ANY),
    ("raw N.d/x.raw; ln -s N.d/x.raw N.raw", "N.d/x.raw", ANY),
    ("tree N.d/N_1; ln -s N.d N.v", "N.d/N_1", VERSIONS),
    (
        "tree N.v/N_1 N.d/x; ln -s ../N.d/x N.v/N_2",
        "N.d/x",
        VERSIONS,
    ),
    ("ln -s nowhere N; raw N.raw", "N.raw", ANY),
    ("ln -s nowhere N", "", ANY),
    ("ln -s nowhere N.raw", "", ANY),
    ("ln -s nowhere N.v", "", ANY),
    ("tree N.v/N_1; ln -s nowhere N.v/N_2", "", ANY),
    ("tree N.d; ln -s N.d N.raw", "", ANY),
    // Two equal versions are refused.
    ("tree N.v/N_1 N.v/N_01", "", NEVER),
    // Paths that are not images.
    ("mkdir N.raw", "", ANY),
    ("raw N", "", ANY),
];

/// Images in several directories: the first directory of the search path that has one wins.
const PLACES: [(&str, &str); 6] = [
    (
        "tree /etc/machines/N; tree /run/machines/N; tree N",
        "/etc/machines/N",
    ),
    ("raw /run/machines/N.raw; tree N", "/run/machines/N.raw"),
    (
        "tree /usr/lib/machines/N /var/lib/container/N N",
        "/var/lib/machines/N",
    ),
    (
        "tree /usr/lib/machines/N; raw /usr/local/lib/machines/N.raw",
        "/usr/local/lib/machines/N.raw",
    ),
    (
        "mkdir -p /etc/machines; ln -s nowhere /etc/machines/N; tree N",
        "/var/lib/machines/N",
    ),
    (
        "mkdir -p /etc/machines/N.raw; raw N.raw",
        "/var/lib/machines/N.raw",
    ),
];

/// Makes a layout, and returns a message if its image is not the expected one.
fn difference(name: &Name, lines: &str, expected: &str, since: u32) -> Option<String> {
    let localize = |text: &str| {
        let text = if cfg!(target_arch = "aarch64") {
            text.replace("x86-64", "arm64").replace("x86", "arm")
        } else {
            text.to_owned()
        };
        text.replace('N', &name.0)
    };
    let expected =
        (!expected.is_empty()).then(|| Path::new("/var/lib/machines").join(localize(expected)));
    let expected = expected.map(|path| path.display().to_string());
    name.sh(&format!("{MAKERS} {}", localize(lines)));
    let (by_prepare, by_machinectl) = (prepare_finds(&name.0), machinectl_finds(&name.0));
    name.remove();
    if by_prepare != expected {
        return Some(format!(
            "{lines}: nspawn-prepare found {by_prepare:?}, not {expected:?}"
        ));
    }
    (by_machinectl != expected && systemd_version() >= since)
        .then(|| format!("{lines}: machinectl found {by_machinectl:?}, not {expected:?}"))
}

#[test]
fn names_resolve_as_in_machinectl() {
    let name = Name::new("layout");
    let layouts = LAYOUTS
        .iter()
        .filter_map(|(lines, expected, since)| difference(&name, lines, expected, *since));
    let places = PLACES
        .iter()
        .filter_map(|(lines, expected)| difference(&name, lines, expected, ANY));
    let wrong: Vec<_> = layouts.chain(places).collect();
    // Empty directories of the search path may come from this test.
    for place in SEARCH_PATH {
        let _ = std::fs::remove_dir(place);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn equal_versions_are_refused() {
    let name = Name::new("twice");
    name.sh(&format!(
        "{MAKERS} tree $name.v/${{name}}_1 $name.v/${{name}}_01"
    ));
    let error = name.expect_refused(&["--init=stub"], "are the same version");
    assert!(
        error.contains("_01") && error.contains("remove one"),
        "{error}"
    );
}

/// Makes an image of three versions, each of which has its number in /version.
fn versions(kind: &str) -> Name {
    let name = Name::new(kind);
    for version in ["1", "9", "10"] {
        add(&name, version);
    }
    name
}

fn add(name: &Name, version: &str) {
    name.sh(&format!(
        "new=$name.v/.new; mkdir -p $new/bin; cp $(command -v busybox) $new/bin/; ln -s busybox $new/bin/sh; \
         ln -s busybox $new/bin/cat; echo {version} >$new/version; mv $new $name.v/${{name}}_{version}"
    ));
}

#[test]
fn newest_version_is_used_and_kept_by_its_machine() {
    let name = versions("versions");
    let (stub, none) = (
        name.machine(&["--init=stub"]),
        name.machine(&["--init=none"]),
    );
    for machine in [&stub, &none] {
        assert_eq!(machine.run(["cat", "/version"]).expect(0).out(), "10\n");
    }
    add(&name, "11");
    for machine in [&stub, &none] {
        assert_eq!(machine.run(["cat", "/version"]).expect(0).out(), "10\n");
    }
    assert_eq!(
        call("nspawn-run", ["--image", &name.0, "cat", "/version"])
            .expect(0)
            .out(),
        "11\n"
    );
    name.sh("ln -s $name.v/${name}_1 $name");
    assert_eq!(
        call("nspawn-run", ["--image", &name.0, "cat", "/version"])
            .expect(0)
            .out(),
        "1\n"
    );
    // A Docker name stands for the same image.
    let name_of_docker = format!("registry.example/x/{}:latest", name.0);
    assert_eq!(
        call(
            "nspawn-run",
            ["--image", &name_of_docker, "cat", "/version"]
        )
        .expect(0)
        .out(),
        "1\n"
    );
    assert_eq!(none.run(["cat", "/version"]).expect(0).out(), "10\n");
    assert!(Path::new(&name.path(".v")).exists());
}

#[test]
fn removed_version_fails_the_next_run() {
    let name = versions("removed");
    let machine = name.machine(&["--init=none"]);
    name.sh("rm -r $name.v/${name}_10");
    let done = machine
        .run(["cat", "/version"])
        .expect_error(125, "did not start");
    done.expect_err(&format!("{}_10", name.0));
}
