//! Standby machines: prepare takes one over if its options match, and the pool is refilled.
//!
//! | module | covers |
//! | --- | --- |
//! | this one | [`Pool`]: a pool for one test |
//! | [`takeover`] | the takeover of a machine |
//! | [`replacement`] | machines that do not match or do not work |
//! | [`pool`] | size, refill and options of a pool |

mod pool;
mod replacement;
mod takeover;

use std::fs;
use std::os::unix::fs::symlink;
use std::thread;
use std::time::Duration;

use nspawn_tests::{Machine, call, image, sh, wait_until};

/// Time limit for a refill of a pool.
const REFILL: Duration = Duration::from_secs(60);

/// A standby pool of a separate image, which is deleted at the end of the test.
struct Pool {
    image: String,
    options: Vec<&'static str>,
}

impl Pool {
    fn new(name: &str, count: u32, options: &[&'static str]) -> Self {
        let tree = image();
        let image = format!("{name}-{}", std::process::id());
        symlink(tree, format!("/var/lib/machines/{image}")).unwrap();
        let pool = Self {
            image,
            options: options.to_vec(),
        };
        pool.resize(count);
        pool
    }

    fn resize(&self, count: u32) {
        let count = format!("--standby={count}");
        call(
            "nspawn-prepare",
            [&*count].iter().chain(&self.options).chain(&[&*self.image]),
        )
        .expect(0);
    }

    /// Returns the names of the machines that can be taken over.
    fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        for entry in fs::read_dir("/run/nspawn-ci").unwrap() {
            let directory = entry.unwrap().path();
            let mark = fs::read_to_string(directory.join("standby")).unwrap_or_default();
            if mark.ends_with(&format!("/{}", self.image))
                && directory.join("specification").exists()
            {
                names.push(directory.file_name().unwrap().to_str().unwrap().to_owned());
            }
        }
        names
    }

    /// Waits until `count` machines can be taken over.
    fn wait_for(&self, count: usize) {
        wait_until(&format!("{count} machines stand by"), REFILL, || {
            self.names().len() == count
        });
    }

    fn prepare(&self, options: &[&str]) -> Machine {
        let all: Vec<_> = self.options.iter().chain(options).copied().collect();
        Machine::of(&self.image, &all)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.resize(0);
        let _ = fs::remove_file(format!("/var/lib/machines/{}", self.image));
    }
}

/// Returns the name that the machine had in its pool, if it comes from one.
fn origin(machine: &Machine) -> Option<String> {
    let state = fs::read(format!("/run/nspawn-ci/{}/state.json", machine.name)).ok()?;
    let state: serde_json::Value = serde_json::from_slice(&state).unwrap();
    let unit = state["unit"].as_str().unwrap();
    let name = unit.strip_prefix("nspawn-")?.strip_suffix(".service")?;
    (name != machine.name).then(|| name.to_owned())
}

fn wait_until_removed(name: &str) {
    let _state = StateOnFailure(name);
    let directory = format!("/run/nspawn-ci/{name}");
    wait_until(&format!("{name} is removed"), REFILL, || {
        !fs::exists(&directory).unwrap()
    });
}

/// Prints the files, the unit and the journal of a machine if the test fails.
struct StateOnFailure<'a>(&'a str);

impl Drop for StateOnFailure<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            let name = self.0;
            let state = sh(&format!(
                "ls -l /run/nspawn-ci/{name}; systemctl status --no-pager nspawn-{name}; \
                 journalctl --since=-90s --no-pager --identifier=nspawn-prepare; \
                 journalctl --since=-90s --no-pager --grep='Refill of a standby pool'"
            ));
            println!("{}", state.describe());
        }
    }
}
