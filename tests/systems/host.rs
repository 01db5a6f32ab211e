//! What the systems share: a host on which they and the programs are installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use nspawn_tests::install;

const PACKAGES: &str =
    "autopkgtest buildbot buildbot-worker debci git munge slurm-client slurmctld slurmd";
/// In the repository.
const PROGRAMS: [&str; 5] = [
    "target/release/nspawn-prepare",
    "target/release/nspawn-run",
    "target/release/nspawn-cleanup",
    "scripts/bin/nspawn-exec",
    "scripts/bin/autopkgtest-virt-nspawn-ci",
];

/// How long a system may take to do something.
pub const SOON: Duration = Duration::from_secs(60);

/// How many tests have them installed.
static USERS: Mutex<u32> = Mutex::new(0);

/// The programs are where services find them, as long as a test has one of these.
pub struct Host;

impl Host {
    pub fn new() -> Self {
        let mut users = USERS.lock().unwrap();
        if *users == 0 {
            install(PACKAGES);
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
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .with_file_name("scripts/recipes.d")
        .join(system)
        .join(file)
}
