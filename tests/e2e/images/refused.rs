//! Images that are none: one clear line, nothing left, and to GitLab whose fault it is.

use nspawn_tests::gitlab_runner::{Job, Outcome};
use nspawn_tests::{finish, left_of, sh};

use super::Name;

/// What is found out when the image is mounted, in the machine's unit. It is the host's fault.
#[track_caller]
fn is_found_out(name: &Name, words: &str) {
    name.is_refused(&["--init=stub"], words);
    let report = Job::new(&name.0)
        .script(&["echo too far"])
        .run()
        .expect_system_failure();
    assert!(report.log().contains(words), "{}", report.describe());
    assert_eq!(name.loop_devices(), "");
}

/// What is found out at once, and can be mended by who chose the image.
#[track_caller]
fn is_not_chosen(name: &Name, words: &str) {
    name.is_refused(&["--init=stub"], words);
    let report = Job::new(&name.0)
        .script(&["echo too far"])
        .run()
        .expect(&Outcome::ScriptFailure(1));
    assert!(report.log().contains(words), "{}", report.describe());
    assert_eq!(
        report.stages(),
        ["config", "prepare", "cleanup"],
        "{}",
        report.describe()
    );
}

/// The first block of a FAT, by which it is known.
const FAT: &str = "{ printf '\\353\\074\\220mkfs.fat\\0\\002\\004\\001\\0\\002\\0\\002\\0\\100\\370\\040\\0'; \
    head -c 30 /dev/zero; printf 'FAT16   '; head -c 448 /dev/zero; printf '\\125\\252'; } >$name.raw; \
    truncate --size=8M $name.raw; test \"$(blkid -p -o value -s TYPE $name.raw)\" = vfat";

#[test]
fn disk_images_without_a_file_system() {
    let name = Name::new("corrupt");
    for lines in [
        "head -c 2M /dev/urandom >$name.raw",
        ": >$name.raw",
        "truncate --size=1M $name.raw",
        // The start of one alone.
        "mkdir -p $name/bin; head -c 2M /dev/urandom >$name/bin/x; mksquashfs $name all -quiet -no-progress; \
         rm -r $name; head -c 1M all >$name.raw; rm all",
        // One without a root.
        "truncate --size=8M $name.raw; echo 'type=L' | sfdisk --quiet --label=gpt $name.raw",
        "truncate --size=8M $name.raw; echo 'label: gpt' | sfdisk --quiet $name.raw",
        // A file system that a test host's kernel does not know.
        FAT,
    ] {
        name.sh(&format!("rm -f $name.raw; {lines}"));
        is_found_out(&name, "can't mount the disk image");
    }
}

#[test]
fn disk_images_without_a_system() {
    let name = Name::new("hollow");
    name.sh("mkdir -p $name/etc; mksquashfs $name $name.raw -quiet -no-progress; rm -r $name");
    is_not_chosen(&name, &format!("({}) is not an OS tree", name.path(".raw")));
}

#[test]
fn what_is_no_image() {
    let name = Name::new("odd");
    for (lines, words) in [
        ("mkdir $name.raw", "is no image"),
        (": >$name", "is no image"),
        ("ln -s nowhere $name", "is no image"),
        ("ln -s nowhere $name.raw", "is no image"),
        ("ln -s $name $name", "is no image"),
        ("mkfifo $name.raw", "is no image"),
        ("mkdir $name.v", "has no version"),
        ("mkdir $name.raw.v", "has no version"),
        ("mkdir -p $name.v; : >$name.v/${name}_1", "has no version"),
        (": >$name.v", "is no image"),
        (
            "mkdir $name.v; ln -s nowhere $name.v/${name}_2",
            "leads nowhere",
        ),
        (
            "mkdir -p $name.v/${name}_1/usr $name.v/${name}_01/usr",
            "one version twice",
        ),
        ("mkdir $name", "is not an OS tree"),
    ] {
        name.sh(&format!("rm -rf $name $name.*; {lines}"));
        is_not_chosen(&name, words);
    }
}

#[test]
fn a_host_without_systemd_dissect() {
    let name = Name::new("undissected");
    name.sh("mkdir -p $name/usr; mksquashfs $name $name.raw -quiet -no-progress; rm -r $name");
    let (programs, machine) = (
        format!("/run/{}", name.0),
        format!("undissected-{}", std::process::id()),
    );
    sh(&format!(
        "mkdir {programs}; ln -s /usr/bin/* /usr/sbin/* {programs} 2>/dev/null; rm {programs}/systemd-dissect"
    ));
    let prepare = sh("command -v nspawn-prepare").out();
    let mut command = std::process::Command::new(prepare.trim());
    let done = finish(
        command
            .args(["--init=stub", "--name", &machine, &name.0])
            .env("PATH", &programs),
        b"",
    );
    sh(&format!("rm -r {programs}"));
    done.expect_error(
        1,
        "systemd-dissect, which mounts disk images, is not installed; install the package",
    );
    assert_eq!(left_of(&machine), "");
}

#[test]
fn a_disk_image_has_no_snapshot() {
    let name = Name::new("snapshot");
    name.sh("mkdir -p $name/usr; mksquashfs $name $name.raw -quiet -no-progress; rm -r $name");
    name.is_refused(&["--init=stub", "--layer=snapshot"], "choose --layer=disk");
}
