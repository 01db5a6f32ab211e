//! Paths that are not images.
//!
//! Prepare fails with one clear line and leaves nothing. GitLab Runner gets a script failure if the
//! job can choose another image, else a system failure.

use nspawn_tests::gitlab_runner::{Job, Outcome, Report};
use nspawn_tests::{finish, left_of, sh};

use super::Name;

/// Expects an error of `nspawn-prepare`, and the same error in a job, whose report it returns.
#[track_caller]
fn refused_job(name: &Name, words: &str) -> Report {
    name.expect_refused(&["--init=stub"], words);
    let report = Job::new(&name.0).script(&["echo too far"]).run();
    report.expect_log(words);
    report
}

/// Expects an error when the machine's unit mounts the image, which is a system failure.
#[track_caller]
fn expect_mount_error(name: &Name, words: &str) {
    refused_job(name, words).expect_system_failure();
    assert_eq!(name.loop_devices(), "");
}

/// Expects an error before anything is mounted, which is a script failure.
#[track_caller]
fn expect_script_failure(name: &Name, words: &str) {
    let report = refused_job(name, words).expect(&Outcome::ScriptFailure(1));
    assert_eq!(
        report.stages(),
        ["config", "prepare", "cleanup"],
        "{}",
        report.describe()
    );
}

/// Shell lines that create a disk image with the first block of a FAT, by which blkid recognizes
/// it.
const FAT: &str = "{ printf '\\353\\074\\220mkfs.fat\\0\\002\\004\\001\\0\\002\\0\\002\\0\\100\\370\\040\\0'; \
    head -c 30 /dev/zero; printf 'FAT16   '; head -c 448 /dev/zero; printf '\\125\\252'; } >$name.raw; \
    truncate --size=8M $name.raw; test \"$(blkid -p -o value -s TYPE $name.raw)\" = vfat";

#[test]
fn disk_images_without_a_file_system_are_refused() {
    let name = Name::new("corrupt");
    for lines in [
        "head -c 2M /dev/urandom >$name.raw",
        ": >$name.raw",
        "truncate --size=1M $name.raw",
        // A truncated squashfs.
        "mkdir -p $name/bin; head -c 2M /dev/urandom >$name/bin/x; mksquashfs $name all -quiet -no-progress; \
         rm -r $name; head -c 1M all >$name.raw; rm all",
        // Partition tables without a root partition.
        "truncate --size=8M $name.raw; echo 'type=L' | sfdisk --quiet --label=gpt $name.raw",
        "truncate --size=8M $name.raw; echo 'label: gpt' | sfdisk --quiet $name.raw",
        // A file system that the kernel of a test host does not know.
        FAT,
    ] {
        name.sh(&format!("rm -f $name.raw; {lines}"));
        expect_mount_error(&name, "can't mount the disk image");
    }
}

#[test]
fn disk_images_without_an_os_tree_are_refused() {
    let name = Name::new("hollow");
    name.sh("mkdir -p $name/etc; mksquashfs $name $name.raw -quiet -no-progress; rm -r $name");
    expect_script_failure(&name, &format!("({}) is not an OS tree", name.path(".raw")));
}

#[test]
fn paths_that_are_not_images_are_refused() {
    let name = Name::new("odd");
    for (lines, words) in [
        ("mkdir $name.raw", "as an image: it must be"),
        (": >$name", "as an image: it must be"),
        ("ln -s nowhere $name", "as an image: it must be"),
        ("ln -s nowhere $name.raw", "as an image: it must be"),
        ("ln -s $name $name", "as an image: it must be"),
        ("mkfifo $name.raw", "as an image: it must be"),
        ("mkdir $name.v", "has no version"),
        ("mkdir $name.raw.v", "has no version"),
        ("mkdir -p $name.v; : >$name.v/${name}_1", "has no version"),
        (": >$name.v", "as an image: it must be"),
        (
            "mkdir $name.v; ln -s nowhere $name.v/${name}_2",
            "is a link to a missing file",
        ),
        (
            "mkdir -p $name.v/${name}_1/usr $name.v/${name}_01/usr",
            "are the same version",
        ),
        ("mkdir $name", "is not an OS tree"),
    ] {
        name.sh(&format!("rm -rf $name $name.*; {lines}"));
        expect_script_failure(&name, words);
    }
}

#[test]
fn missing_systemd_dissect_names_its_package() {
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
fn snapshot_of_a_disk_image_expect_refused() {
    let name = Name::new("snapshot");
    name.sh("mkdir -p $name/usr; mksquashfs $name $name.raw -quiet -no-progress; rm -r $name");
    name.expect_refused(&["--init=stub", "--layer=snapshot"], "choose --layer=disk");
}
