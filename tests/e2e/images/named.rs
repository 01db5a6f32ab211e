//! What a name stands for. It is what it stands for to machinectl.

use std::path::Path;

use nspawn_tests::{call, sh};

use super::Name;

/// The image that `nspawn-prepare` takes for a name, or nothing.
fn ours(name: &str) -> Option<String> {
    let done = call("nspawn-prepare", ["--dry-run", "--init=stub", name]);
    if done.status.code() == Some(1) {
        done.expect_error(1, "image");
        return None;
    }
    let commands = done.expect(0).out();
    let (_, rest) = commands.split_once("\"image_path\":\"").unwrap();
    Some(rest.split('"').next().unwrap().to_owned())
}

/// The one that systemd-machined has by it.
fn theirs(name: &str) -> Option<String> {
    let done = call("machinectl", ["show-image", "--property=Path", "--value", name]);
    let path = done.out().trim_end().to_owned();
    // Links it names as they are.
    (done.status.success() && !path.is_empty()).then(|| std::fs::canonicalize(&path).unwrap().display().to_string())
}

fn knows_versions() -> bool {
    let version = sh("systemctl --version | sed -n '1s/^systemd \\([0-9]*\\).*/\\1/p'").out();
    version.trim().parse::<u32>().unwrap() >= 256
}

/// A tree, and a disk image, of which machines can be made.
const MAKERS: &str = "tree() { for path; do mkdir -p $path/usr; done; }; \
    raw() { for path; do mkdir -p $(dirname $path); truncate --size=1M $path; done; }; \
    dir() { mkdir -p \"$@\"; };";

/// What lies in which directory, and which of it the name stands for; of a plain name, whether 252 knows it.
const LAYOUTS: [(&str, &str); 26] = [
    // In one directory.
    ("tree $name", "$name"),
    ("raw $name.raw", "$name.raw"),
    ("tree $name; raw $name.raw", "$name"),
    ("raw $name.raw; tree $name.v/${name}_1", "$name.raw"),
    ("raw $name.raw.v/${name}_1.raw; tree $name.v/${name}_1", "$name.v/${name}_1"),
    ("raw $name.raw.v/${name}_1.raw", "$name.raw.v/${name}_1.raw"),
    // Versions.
    ("tree $name.v/${name}_9 $name.v/${name}_10 $name.v/${name}_2", "$name.v/${name}_10"),
    ("raw $name.raw.v/${name}_9.raw $name.raw.v/${name}_10.raw", "$name.raw.v/${name}_10.raw"),
    ("tree $name.v/${name}_1.2 $name.v/${name}_1.10 $name.v/${name}_1.10~rc1", "$name.v/${name}_1.10"),
    ("tree $name.v/${name}_1_x86-64 $name.v/${name}_2_s390x $name.v/${name}_3_arm", "$name.v/${name}_1_x86-64"),
    ("tree $name.v/${name}_1 $name.v/${name}_2+0-3 $name.v/${name}_3+0", "$name.v/${name}_1"),
    ("tree $name.v/${name}_1 $name.v/${name}_2+3-1", "$name.v/${name}_2+3-1"),
    ("tree $name.v/${name}_1+0", "$name.v/${name}_1+0"),
    ("tree $name.v/${name}_1 $name.v/.${name}_2 $name.v/other_3 $name.v/${name}", "$name.v/${name}_1"),
    ("tree $name.v/${name}_1; raw $name.v/${name}_2.raw $name.v/${name}_3", "$name.v/${name}_1"),
    ("raw $name.raw.v/${name}_1.raw; tree $name.raw.v/${name}_2.raw", "$name.raw.v/${name}_1.raw"),
    ("tree $name.v/${name}_1; raw $name.raw.v/${name}_2.raw", "$name.v/${name}_1"),
    // Links.
    ("tree $name.v/${name}_1 $name.v/${name}_2; ln -s $name.v/${name}_1 $name", "$name.v/${name}_1"),
    ("tree $name.d/x; ln -s $name.d/x $name", "$name.d/x"),
    ("raw $name.d/x; ln -s $name.d/x $name.raw", "$name.d/x"),
    ("tree $name.v/${name}_1 $name.d/x; ln -s ../$name.d/x $name.v/${name}_2", "$name.d/x"),
    ("ln -s nowhere $name; raw $name.raw", "$name.raw"),
    ("ln -s nowhere $name", ""),
    ("ln -s nowhere $name.raw", ""),
    // Nothing.
    ("dir $name.raw", ""),
    ("raw $name", ""),
];

#[test]
fn machinectl_agrees() {
    let name = Name::new("layout");
    let places = ["/etc/machines", "/run/machines", "/var/lib/machines"];
    let mut wrong = Vec::new();
    for (lines, expected) in LAYOUTS {
        let expected =
            if cfg!(target_arch = "aarch64") { expected.replace("x86-64", "arm64") } else { expected.to_owned() };
        let lines = if cfg!(target_arch = "aarch64") { lines.replace("x86-64", "arm64") } else { lines.to_owned() };
        let expected = expected.replace("${name}", &name.0).replace("$name", &name.0);
        let expected = (!expected.is_empty()).then(|| format!("/var/lib/machines/{expected}"));
        name.sh(&format!("{MAKERS} rm -rf $name $name.*; {lines}"));
        let (ours, theirs) = (ours(&name.0), theirs(&name.0));
        if ours != expected {
            wrong.push(format!("{lines}: we took {ours:?}, not {expected:?}"));
        }
        let is_versioned =
            expected.as_ref().is_some_and(|path| path.contains(".v/")) && !lines.contains("ln -s $name.v");
        if theirs != expected && (knows_versions() || !is_versioned) {
            wrong.push(format!("{lines}: machinectl took {theirs:?}, not {expected:?}"));
        }
    }
    name.sh("rm -rf $name $name.*");
    // The first directory that has any of it wins.
    for (number, place) in places.iter().enumerate().rev() {
        let suffix = ["", ".raw", ""][number];
        sh(&format!(
            "{MAKERS} mkdir -p {place} && cd {place} && {} {}{suffix}",
            ["tree", "raw", "tree"][number],
            name.0
        ))
        .expect(0);
        let path = Some(format!("{place}/{}{suffix}", name.0));
        if ours(&name.0) != path || theirs(&name.0) != path {
            wrong.push(format!("{path:?}: we took {:?}, machinectl {:?}", ours(&name.0), theirs(&name.0)));
        }
    }
    drop(name);
    // Those that this test may have made.
    let _ = [std::fs::remove_dir("/etc/machines"), std::fs::remove_dir("/run/machines")];
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn two_of_one_version_are_none() {
    let name = Name::new("twice");
    name.sh(&format!("{MAKERS} tree $name.v/${{name}}_1 $name.v/${{name}}_01"));
    let error = name.is_refused(&["--init=stub"], "one version twice");
    assert!(error.contains("_01") && error.contains("remove one"), "{error}");
}

/// An image of three versions, each of which tells which it is.
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
fn the_newest_version_is_taken_and_kept() {
    let name = versions("versions");
    let (stub, none) = (name.machine(&["--init=stub"]), name.machine(&["--init=none"]));
    for machine in [&stub, &none] {
        assert_eq!(machine.run(["cat", "/version"]).expect(0).out(), "10\n");
    }
    add(&name, "11");
    for machine in [&stub, &none] {
        assert_eq!(machine.run(["cat", "/version"]).expect(0).out(), "10\n");
    }
    assert_eq!(call("nspawn-run", ["--image", &name.0, "cat", "/version"]).expect(0).out(), "11\n");
    name.sh("ln -s $name.v/${name}_1 $name");
    assert_eq!(call("nspawn-run", ["--image", &name.0, "cat", "/version"]).expect(0).out(), "1\n");
    // A name of Docker's stands for the same.
    let name_of_docker = format!("registry.example/x/{}:latest", name.0);
    assert_eq!(call("nspawn-run", ["--image", &name_of_docker, "cat", "/version"]).expect(0).out(), "1\n");
    assert_eq!(none.run(["cat", "/version"]).expect(0).out(), "10\n");
    assert!(Path::new(&name.path(".v")).exists());
}

#[test]
fn a_version_that_is_gone_is_missed_by_a_machine_between_runs() {
    let name = versions("gone");
    let machine = name.machine(&["--init=none"]);
    name.sh("rm -r $name.v/${name}_10");
    let done = machine.run(["cat", "/version"]).expect_error(125, "did not start");
    assert!(done.err().contains(&format!("{}_10", name.0)), "{}", done.describe());
}
