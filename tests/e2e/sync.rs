//! sync(2) in machines, which must not write back what others have written.

use std::fs;

use nspawn_tests::{Machine, sh};

/// A file system of the host, on a loop device.
struct FileSystem {
    place: String,
    device: String,
}

impl FileSystem {
    /// Without a journal, and without ext4's early write of a file that replaces another one, nothing
    /// but sync(2) writes to the device within seconds.
    #[track_caller]
    fn new() -> Self {
        let place = format!("/var/tmp/e2e-sync-{}", std::process::id());
        let device = sh(&format!(
            "set -e; mkdir {place}; truncate --size=16M {place}.img\n\
             mkfs.ext4 -q -O ^has_journal -E lazy_itable_init=0 {place}.img; mount -o loop,noauto_da_alloc {place}.img {place}\n\
             findmnt --noheadings --output=SOURCE {place}"
        ))
        .expect(0)
        .out();
        let device = device.trim().trim_start_matches("/dev/").to_owned();
        sh("sync").expect(0);
        Self { place, device }
    }

    /// Returns whether `sync` writes a new file's data to the device.
    #[track_caller]
    fn is_written_by(&self, sync: impl FnOnce()) -> bool {
        let file = format!("{}/file", self.place);
        fs::write(file, vec![b'x'; 1 << 20]).unwrap();
        let before = self.sectors_written();
        sync();
        let after = self.sectors_written();
        sh("sync").expect(0);
        after - before >= (1 << 20) / 512
    }

    /// The statistics are described in the kernel's Documentation/block/stat.rst.
    #[track_caller]
    fn sectors_written(&self) -> u64 {
        let path = format!("/sys/class/block/{}/stat", self.device);
        let statistics = fs::read_to_string(path).unwrap();
        let field = statistics.split_whitespace().nth(6);
        field.unwrap().parse().unwrap()
    }
}

impl Drop for FileSystem {
    fn drop(&mut self) {
        let place = &self.place;
        let _ = sh(&format!("umount {place}; rm -r {place} {place}.img"));
    }
}

#[test]
fn sync_in_a_machine_writes_nothing_of_others() {
    let others = FileSystem::new();
    let writes = |options: &[&str]| {
        let machine = Machine::with(options);
        others.is_written_by(|| {
            machine.sh("echo x >/root/file && sync").expect(0);
        })
    };
    assert!(others.is_written_by(|| {
        sh("sync").expect(0);
    }));
    // Another program of the kernel may write everything meanwhile, but not each time.
    let has_quiet_try = |options: &[&str]| (0..3).any(|_| !writes(options));
    for init in ["--init=systemd", "--init=stub", "--init=none"] {
        assert!(has_quiet_try(&[init]), "{init}");
    }
    assert!(has_quiet_try(&["--init=stub", "--bind-ro=/opt"]));
    assert!(writes(&["--init=stub", "--bind=/opt"]));
    assert!(writes(&["--init=stub", "--system-call-filter=sync"]));
}
