//! Images for other architectures.

use std::process::Command;

use nspawn_tests::{finish, left_of};

use super::Name;

/// Beginning of a program for s390x, as printf(1) prints it.
const PROGRAM: &str = r"\177ELF\002\002\001\0\0\0\0\0\0\0\0\0\0\002\0\026";
/// Entry of the kernel's list that fits the program.
const ENTRY: &str = "enabled\ninterpreter /usr/bin/qemu-s390x-static\nflags: OC\noffset 0\n\
                     magic 7f454c46020201\n";

/// Calls `nspawn-prepare` on a host whose list of interpreters has this entry, and is what the
/// files of `status` say.
#[track_caller]
fn refuse(name: &Name, status: &str, entry: &str, words: &str) {
    let list = "/proc/sys/fs/binfmt_misc";
    let machine = name.0.replace("e2e", "refused");
    let line = format!(
        "mount -t tmpfs none {list} && echo {status} >{list}/status && printf '%s' '{entry}' >{list}/qemu && \
         exec nspawn-prepare --init=stub --name {machine} {}",
        name.0
    );
    let done = finish(
        Command::new("unshare").args(["--mount", "sh", "-c", &line]),
        b"",
    );
    let error = done.expect_error(1, words).err();
    assert!(
        error.contains("can't run the image") && error.contains("it is for s390x"),
        "{error}"
    );
    assert!(error.contains("qemu-user-static"), "{error}");
    assert_eq!(left_of(&machine), "");
}

#[test]
fn image_of_another_architecture_needs_an_interpreter() {
    let name = Name::new("foreign");
    name.sh(&format!(
        "mkdir -p $name/bin; printf '{PROGRAM}' >$name/bin/sh; head -c 200 /dev/zero >>$name/bin/sh"
    ));
    let none = "the host has no interpreter";
    refuse(&name, "enabled", "", none);
    refuse(&name, "disabled", ENTRY, none);
    refuse(
        &name,
        "enabled",
        &ENTRY.replace("enabled", "disabled"),
        none,
    );
    refuse(&name, "enabled", &ENTRY.replace("0201", "0101"), none);
    let missing = "the host's interpreter /usr/bin/qemu-s390x-static is not in the image";
    refuse(&name, "enabled", ENTRY, missing);
}
