//! Sources of an image, and its description.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nspawn_common::shell;
use nspawn_tests::{Machine, call, finish, sh, wait_until};
use serde_json::json;

use crate::lab::{FULL, Image, SMALL, expect_failure, listed, scratch, script};

#[test]
fn image_from_tar_with_scripts_is_described_and_listed() {
    let first = script(
        "cat /etc/resolv.conf >/seen; id -u >/who; test -e /run/nspawn-image/script; touch /run/x /tmp/x",
    );
    let second = scratch("no program");
    fs::write(&second, "cat /who >/again\n").unwrap();
    let options = [
        "--script",
        first.to_str().unwrap(),
        "--script",
        second.to_str().unwrap(),
    ];
    let image = Image::from_tar("scripts", &SMALL, &options);
    assert_eq!((&*image.read("who"), &*image.read("again")), ("0\n", "0\n"));
    // The scripts use the host's resolver. Neither it nor the files for the scripts are in the
    // image.
    assert_eq!(
        image.read("seen"),
        fs::read_to_string("/etc/resolv.conf").unwrap()
    );
    assert_eq!(
        image.read("etc/resolv.conf"),
        "# Replaced by systemd-nspawn.\n"
    );
    assert!(!image.file("run/nspawn-image").exists() && !image.file("run/x").exists());
    let description = fs::read_to_string(image.description()).unwrap();
    assert_eq!(
        description.lines().skip(1).collect::<Vec<_>>(),
        [
            format!("--from-tar {}", SMALL.display()),
            format!("--script {}", first.display()),
            format!("--script '{}'", second.display())
        ]
    );
    let line = listed(&image.name).unwrap();
    let words: Vec<_> = line.split_whitespace().collect();
    assert_eq!(
        words[1],
        image
            .current()
            .strip_prefix(&format!("{}_", image.name))
            .unwrap()
    );
    assert_eq!(words[3..], ["0", "yes"], "{line}");
    assert_eq!(image.leftovers(), "");
    expect_failure(image.run("create", &[]), "already exists");
}

#[test]
fn description_creates_the_same_image_again() {
    let odd = scratch("it's \"odd\" $(touch $HOME) \\ `x` # y");
    fs::write(&odd, "touch /odd\n").unwrap();
    let image = Image::from_tar("described", &SMALL, &["--script", odd.to_str().unwrap()]);
    let description = fs::read(image.description()).unwrap();
    image.run("remove", &[]).expect(0);
    assert!(listed(&image.name).is_none() && !image.versions_dir().exists());
    image.run("create", &[]).expect(0);
    assert!(image.file("odd").exists());
    assert_eq!(fs::read(image.description()).unwrap(), description);
    image.run("remove", &[]).expect(0);
    expect_failure(
        image.run("create", &["--from-tar", SMALL.to_str().unwrap()]),
        "describes",
    );
}

#[test]
fn words_of_a_description_are_not_expanded() {
    let image = Image::named("words");
    let mark = scratch("mark");
    let write = |text: &str| {
        fs::create_dir_all(image.description().parent().unwrap()).unwrap();
        fs::write(image.description(), text).unwrap();
    };
    write(&format!(
        "# a comment's quote\n--from-tar=$(touch {0}) # `touch {0}`\n",
        mark.display()
    ));
    // The word ends at the blank. The rest is another operand, and not a part of the file's name.
    image.run("create", &[]).expect(1);
    write(&format!("--from-tar \"$(touch {0})\"\n", mark.display()));
    expect_failure(image.run("create", &[]), "there is no file $(touch ");
    for (text, words) in [
        ("--from-tar 'open", "a quote is not closed"),
        ("plain", "'plain' is not an option"),
        ("--script /nowhere", "there is no file /nowhere"),
    ] {
        write(text);
        expect_failure(image.run("create", &[]), words);
    }
    write("--directory /tmp");
    image.run("create", &[]).expect(2);
    write(&"# long\n".repeat(10_000));
    expect_failure(image.run("create", &[]), "is larger than");
    write(&format!("--from-\\\ntar \\\n {}\t# end", SMALL.display()));
    image.run("create", &[]).expect(0);
    assert!(!mark.exists());
}

#[test]
fn failed_create_leaves_nothing() {
    let image = Image::named("failing");
    let tar = SMALL.to_str().unwrap();
    let failing = script("echo some words; exit 7");
    let done = image.run(
        "create",
        &["--from-tar", tar, "--script", failing.to_str().unwrap()],
    );
    assert!(
        expect_failure(done, "failed; its last lines")
            .err()
            .contains("\n  some words\n")
    );
    let empty = scratch("empty.tar");
    sh(&format!("tar -cf {} -C / etc/hosts", empty.display())).expect(0);
    expect_failure(
        image.run("create", &["--from-tar", empty.to_str().unwrap()]),
        "no /usr",
    );
    fs::write(&empty, "no tar").unwrap();
    expect_failure(
        image.run("create", &["--from-tar", empty.to_str().unwrap()]),
        "can't unpack",
    );
    expect_failure(
        image.run("create", &["--from-oci", "oci:/nowhere"]),
        "can't fetch oci:/nowhere",
    );
    expect_failure(
        image.run("create", &["--from-tar", tar, "--include", "x"]),
        "can't install",
    );
    assert_eq!(image.leftovers(), "");
    assert!(
        listed(&image.name).is_none()
            && !image.description().exists()
            && !image.versions_dir().exists()
    );
}

#[test]
fn policy_of_the_host_decides_which_container_images_are_used() {
    let (layout, policy) = (scratch("policy-oci"), scratch("policy.json"));
    let line = format!(
        "umoci init --layout {0} && umoci new --image {0}:x",
        layout.display()
    );
    sh(&line).expect(0);
    fs::write(&policy, r#"{"default": [{"type": "reject"}]}"#).unwrap();
    let image = Image::named("policy");
    // Only the command sees the changes of the host.
    for (change, words, cause) in [
        (
            format!(
                "mount --bind {} /etc/containers/policy.json",
                policy.display()
            ),
            "can't fetch oci:",
            "is rejected by policy",
        ),
        (
            "mount -t tmpfs none /etc/containers".to_owned(),
            "apt-get install golang-github-containers-common:",
            "policy.json",
        ),
        // The image is fetched, but it is empty.
        ("true".to_owned(), "it has no /usr", ""),
    ] {
        let create = format!(
            "nspawn-image create {} --from-oci oci:{}:x",
            image.name,
            layout.display()
        );
        let done = sh(&format!(
            "unshare --mount sh -c '{change} && exec {create}'"
        ));
        expect_failure(done, words).expect_err(cause);
    }
    assert_eq!(image.leftovers(), "");
}

#[test]
fn container_image_becomes_an_image_with_its_settings() {
    let (layout, bundle) = (scratch("oci"), scratch("bundle"));
    let line = format!(
        "set -e; umoci init --layout {0}; umoci new --image {0}:x; umoci unpack --image {0}:x {1}; \
         tar -C {1}/rootfs -xf {2}; umoci repack --image {0}:x {1}; \
         umoci config --image {0}:x --config.env 'A=it'\"'\"'s 1' --config.entrypoint /usr/bin/env --config.entrypoint B=2 \
         --config.cmd sh --config.cmd -c --config.cmd 'echo --x' --config.exposedports 5432/tcp \
         --config.user 1000:1000 --config.workingdir /srv/app",
        layout.display(),
        bundle.display(),
        SMALL.display()
    );
    sh(&line).expect(0);
    let image = Image::named("oci");
    image
        .run(
            "create",
            &["--from-oci", &format!("oci:{}:x", layout.display())],
        )
        .expect(0);
    assert!(image.file("usr/bin/sh").exists());
    let settings = image.description().with_extension("args");
    let options = shell::split(OsStr::new(&fs::read_to_string(&settings).unwrap())).unwrap();
    let (entrypoint, command) = (
        "--service-entrypoint=/usr/bin/env B=2",
        "--service-command=sh -c 'echo --x'",
    );
    let (user, place) = (
        "--service-user=1000:1000",
        "--service-working-directory=/srv/app",
    );
    assert_eq!(
        options,
        [
            "--init=stub",
            "--setenv=A=it's 1",
            entrypoint,
            command,
            user,
            place,
            "--service-port=5432"
        ]
    );
    assert_eq!(image.leftovers(), "");
    // Settings that an administrator wrote stay.
    fs::write(&settings, "--init=stub").unwrap();
    image.run("remove", &[]).expect(0);
    image.run("create", &[]).expect(0);
    assert_eq!(fs::read_to_string(&settings).unwrap(), "--init=stub");
    fs::remove_file(&settings).unwrap();
}

/// Changes the configuration of a container image as no tool writes it.
const SPOIL_CONFIGURATION: &str = r#"
import hashlib, json, pathlib, sys
layout = pathlib.Path(sys.argv[1])
blob = lambda digest: layout / "blobs" / digest.replace(":", "/")
def write(value):
    text = json.dumps(value).encode()
    digest = "sha256:" + hashlib.sha256(text).hexdigest()
    blob(digest).write_bytes(text)
    return {"digest": digest, "size": len(text)}
index = json.loads((layout / "index.json").read_text())
manifest = json.loads(blob(index["manifests"][0]["digest"]).read_text())
image = json.loads(blob(manifest["config"]["digest"]).read_text())
image["config"].update(json.loads(sys.argv[2]))
manifest["config"].update(write(image))
index["manifests"][0].update(write(manifest))
(layout / "index.json").write_text(json.dumps(index))
"#;

/// Each value could be an option, a comment, another word or a command, if it were not quoted.
#[test]
fn settings_of_a_hostile_container_image_are_only_values() {
    let (layout, bundle) = (scratch("oci"), scratch("bundle"));
    let nasty = [
        "--bind=/:/host",
        "# comment",
        "a\nb",
        "$(id)",
        "'",
        "\"",
        "\\",
        "",
        " ",
        "--",
        "x\n--bind=/:/host",
    ];
    let configuration = json!({
        "Env": ["SECRET_OF_THE_CALLER", "=nameless", "", "--bind=/:/host", "A=\n--bind=/:/host # '\"", "B=", "#=1"],
        "Entrypoint": nasty, "Cmd": nasty, "User": "--bind=/:/host\n#", "WorkingDir": "/x\n--bind=/:/host",
        "ExposedPorts": { "0x10/tcp": {} }, "Labels": { "--bind": "/:/host" },
    });
    let line = format!(
        "set -e; umoci init --layout {0}; umoci new --image {0}:x; umoci unpack --image {0}:x {1}; \
         tar -C {1}/rootfs -xf {2}; umoci repack --image {0}:x {1}; python3 -c \"$SPOIL\" {0} \"$CONFIGURATION\"",
        layout.display(),
        bundle.display(),
        SMALL.display()
    );
    let mut spoil = Command::new("sh");
    spoil
        .args(["-c", &line])
        .env("SPOIL", SPOIL_CONFIGURATION)
        .env("CONFIGURATION", configuration.to_string());
    finish(&mut spoil, b"").expect(0);
    let image = Image::named("oci-hostile");
    let source = format!("oci:{}:x", layout.display());
    let done = image.run("create", &["--from-oci", &source]).expect(0);
    done.expect_err("left out the variable 'SECRET_OF_THE_CALLER' of the container image");
    let settings = image.description().with_extension("args");
    let options = shell::split(OsStr::new(&fs::read_to_string(&settings).unwrap())).unwrap();
    let words = shell::join(nasty).into_string().unwrap();
    let split = |option: &OsStr, name: &str| {
        let value = option
            .to_str()
            .unwrap()
            .strip_prefix(name)
            .unwrap()
            .to_owned();
        shell::split(OsStr::new(&value)).unwrap()
    };
    assert_eq!(options.len(), 9, "{options:?}");
    assert_eq!(
        options[..5],
        [
            "--init=stub",
            "--setenv=--bind=/:/host",
            "--setenv=A=\n--bind=/:/host # '\"",
            "--setenv=B=",
            "--setenv=#=1"
        ]
    );
    assert_eq!(
        split(&options[5], "--service-entrypoint="),
        nasty,
        "{words}"
    );
    assert_eq!(split(&options[6], "--service-command="), nasty);
    assert_eq!(options[7], "--service-user=--bind=/:/host\n#");
    assert_eq!(options[8], "--service-working-directory=/x\n--bind=/:/host");
    // nspawn-prepare takes the file, and nothing of the caller's or of the host's gets in.
    let mut prepare = Command::new("nspawn-prepare");
    prepare
        .env("SECRET_OF_THE_CALLER", "stolen")
        .args(["--json", "--network=none", &image.name]);
    let state = finish(&mut prepare, b"").expect(0).out();
    let state: serde_json::Value = serde_json::from_str(&state).unwrap();
    let machine = Machine {
        name: state["name"].as_str().unwrap().to_owned(),
    };
    let environment = json!(["--bind=/:/host", "A=\n--bind=/:/host # '\"", "B=", "#=1"]);
    assert_eq!(state["environment"], environment);
    let variables = machine.sh("env").expect(0).out();
    assert!(!variables.contains("stolen"), "{variables}");
    assert_ne!(machine.sh("ls /host").code(), 0);
    drop(machine);
    fs::remove_file(&settings).unwrap();
}

/// A leftover in a directory that all users can open, which a user keeps open and locked.
#[test]
fn other_users_lock_no_image_and_no_leftover() {
    let image = Image::named("locked");
    let directory = scratch("open");
    let leftover = directory.join(format!(".{}.nspawn-image-abcdef", image.name));
    let nobody = "setpriv --reuid=65534 --regid=65534 --clear-groups";
    let line = format!(
        "install -d -m 755 {0} {0}/tree /var/tmp/images-{1}; exec {nobody} flock --exclusive {0} sleep 100",
        leftover.display(),
        std::process::id()
    );
    let mut holder = Command::new("sh").args(["-c", &line]).spawn().unwrap();
    wait_until("the user holds the lock", Duration::from_secs(10), || {
        leftover.exists()
            && sh(&format!("flock --nonblock {} true", leftover.display())).code() != 0
    });
    let options = [
        "--unversioned",
        "--directory",
        directory.to_str().unwrap(),
        "--from-tar",
        SMALL.to_str().unwrap(),
    ];
    let done = image.run("create", &options);
    holder.kill().unwrap();
    holder.wait().unwrap();
    done.expect(0);
    assert!(!leftover.exists());
    let lock = format!("/run/nspawn-image/{}.lock", image.name);
    let open = sh(&format!("{nobody} flock --nonblock {lock} true"));
    assert_ne!(open.code(), 0, "{lock} can be locked by all");
}

#[test]
fn minimal_image_has_licences_and_no_documentation() {
    let image = Image::from_tar("minimal", &FULL, &["--minimal", "--no-boot-test"]);
    let files = |dir: &str| {
        sh(&format!(
            "cd {} && find {dir} ! -type d | sed 's|.*/||' | sort -u",
            image.file("").display()
        ))
    };
    assert_eq!(files("usr/share/doc").out(), "copyright\n");
    assert_eq!(
        files("usr/share/man usr/share/info usr/share/locale 2>/dev/null")
            .out()
            .replace("locale.alias\n", ""),
        ""
    );
    let rules = image.read("etc/dpkg/dpkg.cfg.d/nspawn-image");
    assert!(rules.contains("path-exclude=/usr/share/man/*\n"), "{rules}");
}

#[test]
fn unversioned_image_has_no_versions_until_it_is_adopted() {
    let image = Image::from_tar("plain", &SMALL, &["--unversioned"]);
    let path = image.file("").components().as_path().to_owned();
    assert!(!path.is_symlink() && !image.description().exists());
    let line = listed(&image.name).unwrap();
    assert!(line.contains(" - ") && line.contains(" no"), "{line}");
    expect_failure(image.run("update", &[]), "nspawn-image adopt");
    expect_failure(image.run("rollback", &[]), "nspawn-image adopt");
    image.run("adopt", &[]).expect(0);
    assert_eq!(image.versions(), [image.current()]);
    image.run("update", &["--no-upgrade"]).expect(0);
    assert_eq!(image.versions().len(), 2);
    expect_failure(image.run("adopt", &[]), "it is already a link");
}

#[test]
fn invalid_arguments_are_refused_with_a_reason() {
    for (words, part) in [
        (&["create"][..], "NAME is missing"),
        (&["create", "a", "b"], "can't use 'b': only one NAME"),
        (&["create", "../a"], "can't be the name of an image"),
        (&["create", "a.v"], "can't be the name of an image"),
        (
            &["create", "a", "--keep=1"],
            "not an option of this command",
        ),
        (
            &["update", "a", "--script", "x"],
            "not an option of this command",
        ),
        (&["prune", "--keep=some"], "needs a number"),
        (&["pull", "here", "a"], "is not the URL"),
        (&["nonsense"], "unknown command"),
        (&["list", "--nonsense"], "unknown option"),
        (&["create", "a", "--release"], "--release needs a value"),
        (
            &["create", "a", "--architecture", "arm64,amd64"],
            "--architecture needs",
        ),
        (
            &[
                "create",
                "a",
                "--architecture",
                "arm64",
                "--from-oci",
                "oci:/nowhere",
            ],
            "can't use --architecture with",
        ),
        (
            &["create", "a", "--from-tar", "/dev/null", "--from-oci", "x"],
            "there is no file /dev/null",
        ),
    ] {
        let done = call("nspawn-image", words);
        assert!(
            done.err().contains(part) && done.err().lines().count() == 1,
            "{}",
            done.describe()
        );
    }
    assert!(Path::new("/var/lib/machines").exists());
}
