//! A host with the systems and the programs installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use nspawn_tests::install;

const PACKAGES: &str =
    "autopkgtest buildbot buildbot-worker debci git munge slurm-client slurmctld slurmd";
/// Files of the repository, and the directories in which they are installed.
const PROGRAMS: [(&str, &str); 6] = [
    ("target/release/nspawn-prepare", "/usr/local/bin"),
    ("target/release/nspawn-run", "/usr/local/bin"),
    ("target/release/nspawn-cleanup", "/usr/local/bin"),
    ("scripts/bin/nspawn-exec", "/usr/local/bin"),
    ("scripts/bin/autopkgtest-virt-nspawn-ci", "/usr/local/bin"),
    ("scripts/lib.sh", "/usr/local/lib/nspawn-ci"),
];

/// Time limit for a step of a system.
pub const SOON: Duration = Duration::from_secs(60);

/// Number of tests that use the installed programs.
static USERS: Mutex<u32> = Mutex::new(0);

/// Guard that keeps the programs installed in a directory where services find them.
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
                let _ = fs::remove_file(installed(&program));
            }
        }
    }
}

// Copies the programs. Links would break in services with a private /tmp if the repository is
// there.
fn install_programs() {
    for program in PROGRAMS {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name(program.0);
        fs::create_dir_all(program.1).unwrap();
        fs::copy(file, installed(&program)).unwrap();
    }
}

fn installed((file, directory): &(&str, &str)) -> PathBuf {
    Path::new(directory).join(Path::new(file).file_name().unwrap())
}

/// Returns the path of a file of the recipe for `system`, which its users copy.
pub fn recipe(system: &str, file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .with_file_name("scripts/recipes.d")
        .join(system)
        .join(file)
}
