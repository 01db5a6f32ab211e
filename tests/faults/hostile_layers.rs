//! An attacker wrote the layer. nspawn-cleanup removes it, or refuses that with a reason, and
//! changes nothing outside of it.

use std::fs;
use std::path::{Path, PathBuf};

use nspawn_tests::{FLAGS, Machine, call, left_of, sh};

use crate::suite::{Suite, machine};

/// A directory of the host that must not change.
struct Outside(PathBuf);

impl Outside {
    fn new(machine: &Machine) -> Self {
        let path = Path::new("/var/tmp").join(&machine.name);
        fs::create_dir(&path).unwrap();
        fs::write(path.join("file"), "kept").unwrap();
        Self(path)
    }

    #[track_caller]
    fn assert_unchanged(&self) {
        assert_eq!(fs::read_to_string(self.0.join("file")).unwrap(), "kept");
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub fn rows(suite: &mut Suite) {
    let files = suite.times(20_000, 1_000_000);
    let deep = "perl -e 'for (1..10000) { mkdir \"d\"; chdir \"d\" or die } '";
    let many = format!("mkdir many && cd many && seq {files} | xargs touch");
    let odd =
        "touch 'new\nline' -- '-rf' '*' \"$(printf '\\377\\001')\"; mkfifo pipe; mknod null c 1 3";
    let locked = format!(
        "{FLAGS}; touch a b; mkdir c; touch c/d; flags 10 a c/d c && flags 20 b && flags 10 ."
    );
    let links = "ln -s OUTSIDE link; mkdir e; ln -s OUTSIDE/file e/link; ln -s / root; ln -s /etc etc; ln -s . self";
    let mounts = "mkdir m n && mount -t tmpfs none m && touch m/x && mount --bind /etc n";
    for (name, script) in [
        ("10000 nested directories", deep),
        (&*format!("{files} files"), &*many),
        ("odd names and file types", odd),
        ("immutable and append-only files", &*locked),
        ("symbolic links to the outside", links),
        ("mounts that still exist", mounts),
    ] {
        suite.row(&format!("a hostile layer: {name}"), 1, |_| {
            // The layer is a directory of the host, and the host's root owns the files.
            let machine = machine(&["--layer-size=infinity", "--private-users=no"]);
            let outside = Outside::new(&machine);
            let script = script.replace("OUTSIDE", &outside.0.to_string_lossy());
            machine
                .sh(&format!("cd /root && {{ {script}; }}"))
                .expect(0);
            call("nspawn-cleanup", [&machine.name]).expect(0);
            assert_eq!(left_of(&machine.name), "");
            outside.assert_unchanged();
        });
    }
    suite.row(
        "a file system is mounted in the layer's directory",
        1,
        |_| {
            let machine = machine(&[]);
            let outside = Outside::new(&machine);
            let place = format!("/var/lib/nspawn-ci/machines/{}/place", machine.name);
            sh(&format!(
                "mkdir -p {place} && mount --bind {} {place}",
                outside.0.display()
            ))
            .expect(0);
            let done = call("nspawn-cleanup", [&machine.name]);
            outside.assert_unchanged();
            sh(&format!("umount {place}")).expect(0);
            done.expect_error(1, "a file system is mounted there");
            call("nspawn-cleanup", [&machine.name]).expect(0);
        },
    );
}
