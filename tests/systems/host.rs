//! What the systems share: a host on which they and the programs are installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nspawn_tests::sh;

const PACKAGES: &str = "autopkgtest buildbot buildbot-worker debci git munge slurm-client slurmctld slurmd";
/// In the repository.
const PROGRAMS: [&str; 5] = [
    "target/release/nspawn-prepare",
    "target/release/nspawn-run",
    "target/release/nspawn-cleanup",
    "scripts/nspawn-exec",
    "scripts/autopkgtest-virt-nspawn-ci",
];

/// How many tests have them installed.
static USERS: Mutex<u32> = Mutex::new(0);

/// The programs are where services find them, as long as a test has one of these.
pub struct Host;

impl Host {
    pub fn new() -> Self {
        let mut users = USERS.lock().unwrap();
        if *users == 0 {
            install_systems();
            install_programs();
        }
        *users += 1;
        Self
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let mut users = USERS.lock().unwrap();
        *users -= 1;
        if *users == 0 {
            for program in PROGRAMS {
                let _ = fs::remove_file(installed(program));
            }
        }
    }
}

fn install_systems() {
    let options = "--quiet --yes --no-install-recommends --option Dpkg::Options::=--force-unsafe-io";
    let line = format!(
        "dpkg --status {PACKAGES} >/dev/null 2>&1 || \
         {{ apt-get --quiet update && DEBIAN_FRONTEND=noninteractive apt-get install {options} {PACKAGES}; }}"
    );
    sh(&line).expect(0);
}

// Not as links: services may have a /tmp of their own, and the repository may be there.
fn install_programs() {
    for program in PROGRAMS {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name(program);
        fs::copy(file, installed(program)).unwrap();
    }
}

fn installed(program: &str) -> PathBuf {
    Path::new("/usr/local/bin").join(Path::new(program).file_name().unwrap())
}

/// A file that users of `system` copy.
pub fn recipe(system: &str, file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("scripts/recipes.d").join(system).join(file)
}

/// Waits until `condition` holds, a minute at most.
#[track_caller]
pub fn until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "that takes too long");
        std::thread::sleep(Duration::from_millis(100));
    }
}
