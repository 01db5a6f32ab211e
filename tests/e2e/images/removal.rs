//! Images that are removed while a machine is created from them.
//!
//! `nspawn-image` locks an image exclusively while it removes it. The lock is a file of its own.

use std::process::{Child, Command, Stdio};

use nspawn_tests::{Machine, call, left_of, sh};

use super::Name;

/// Makes an image of these versions, each of which has a busybox and its number in /version.
fn versions(kind: &str, versions: &[&str]) -> Name {
    let name = Name::new(kind);
    for version in versions {
        name.sh(&format!(
            "new=$name.v/${{name}}_{version}; mkdir -p $new/bin; cp $(command -v busybox) $new/bin/; \
             ln -s busybox $new/bin/sh; echo {version} >$new/version"
        ));
    }
    name
}

/// Returns the path of an image's lock.
fn lock_of(path: &str) -> String {
    let line = format!(
        "install -d -m 0700 /run/nspawn-image; stat --format=/run/nspawn-image/.tree-%d-%i {path}"
    );
    sh(&line).expect(0).out().trim().to_owned()
}

/// A process that holds the exclusive lock on an image, and removes the image on request.
struct Remover {
    shell: Child,
}

impl Remover {
    fn lock(path: &str) -> Self {
        let lock = lock_of(path);
        let line = format!("exec 9>>{lock}; flock --exclusive 9; echo; read go; rm -r {path}");
        let mut shell = Command::new("sh")
            .args(["-c", &line])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = [0];
        std::io::Read::read_exact(shell.stdout.as_mut().unwrap(), &mut line).unwrap();
        Self { shell }
    }

    fn remove(mut self) {
        drop(self.shell.stdin.take());
        assert!(self.shell.wait().unwrap().success());
    }
}

/// Starts `nspawn-prepare`, and returns once it waits for the lock on the image.
fn start_waiting_prepare(name: &Name, machine: &str) -> Child {
    let prepare = Command::new("nspawn-prepare")
        .args(["--init=stub", "--name", machine, &name.0])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let line = format!(
        "timeout 20 sh -c 'until pgrep --parent {} -x flock; do sleep 0.02; done'",
        prepare.id()
    );
    sh(&line).expect(0);
    prepare
}

#[test]
fn older_version_is_used_when_the_newest_is_removed() {
    let (name, machine) = (
        versions("going", &["1", "2"]),
        format!("going-{}", std::process::id()),
    );
    let remover = Remover::lock(&format!("{}/{}_2", name.path(".v"), name.0));
    let prepare = start_waiting_prepare(&name, &machine);
    remover.remove();
    let done = prepare.wait_with_output().unwrap();
    assert!(done.status.success(), "{done:?}");
    let machine = Machine { name: machine };
    assert_eq!(
        machine
            .sh("read version </version; echo $version")
            .expect(0)
            .out(),
        "1\n"
    );
}

#[test]
fn prepare_fails_when_the_last_version_is_removed() {
    let (name, machine) = (
        versions("last", &["1"]),
        format!("last-{}", std::process::id()),
    );
    let remover = Remover::lock(&format!("{}/{}_1", name.path(".v"), name.0));
    let prepare = start_waiting_prepare(&name, &machine);
    remover.remove();
    let done = prepare.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(1), "{error}");
    assert!(
        error.contains("has no version") && error.lines().count() == 1,
        "{error}"
    );
    assert_eq!(left_of(&machine), "");
}

#[test]
fn prepare_that_waits_for_a_removal_can_be_interrupted() {
    let name = versions("kept", &["1"]);
    let path = format!("{}/{}_1", name.path(".v"), name.0);
    let (remover, machine) = (Remover::lock(&path), format!("kept-{}", std::process::id()));
    let mut prepare = start_waiting_prepare(&name, &machine);
    // The time limit of one minute is too long for a test, so a signal ends the wait.
    sh(&format!("kill -TERM {}", prepare.id())).expect(0);
    assert!(!prepare.wait().unwrap().success());
    remover.remove();
    assert_eq!(left_of(&machine), "");
}

/// The lock is held until the machine's state records that the image is in use.
#[test]
fn image_is_locked_only_while_its_machine_is_made() {
    let name = versions("locked", &["1"]);
    let path = format!("{}/{}_1", name.path(".v"), name.0);
    let (file, mark) = (lock_of(&path), format!("/run/{}", name.0));
    let lock = format!("flock --nonblock --exclusive {file} true");
    let try_lock = format!("--property=ExecStartPre=/bin/sh -c '{lock}; echo $? >{mark}'");
    let machine = name.machine(&["--init=stub", &try_lock]);
    let lock_status = std::fs::read_to_string(&mark).unwrap();
    std::fs::remove_file(&mark).unwrap();
    assert_eq!(lock_status, "1\n");
    sh(&lock).expect(0);
    let state = format!("/run/nspawn-ci/{}/state.json", machine.name);
    assert!(std::fs::read_to_string(state).unwrap().contains(&path));
    // Shared locks of other users do not block a prepare.
    let user = sh(&format!(
        "flock --shared {file} nspawn-prepare --init=stub {}",
        name.0
    ))
    .expect(0);
    call("nspawn-cleanup", [user.out().trim()]).expect(0);
}

#[test]
fn image_removed_without_a_lock_is_reported() {
    let name = versions("vanished", &["1"]);
    let path = format!("{}/{}_1", name.path(".v"), name.0);
    let remove = format!("--property=ExecStartPre=/bin/rm -r {path}");
    name.expect_refused(&["--init=stub", &remove], &format!("can't open {path}"));
}

#[test]
fn disk_image_removed_without_a_lock_is_reported() {
    let disk = Name::new("vanished-disk");
    disk.sh("mkdir -p $name/bin; mksquashfs $name $name.raw -quiet -no-progress; rm -r $name");
    let remove = format!("--property=ExecStartPre=/bin/rm {}", disk.path(".raw"));
    disk.expect_refused(&["--init=stub", &remove], &disk.path(".raw"));
}
