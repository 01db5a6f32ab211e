//! The table of faults, and helpers that all of its rows share.

use std::process::{Command, ExitCode};
use std::thread;

use nspawn_tests::harness::{self, Harness, Row};
use nspawn_tests::{image, left_of};

pub use nspawn_tests::harness::{machine, name, prefix};

/// Width of the column of faults.
const NAME_WIDTH: usize = 66;

/// The table.
pub struct Suite {
    /// True if the suite tries more often, and adds faults that take long.
    pub is_long: bool,
    harness: Harness,
}

impl Suite {
    pub fn new() -> Self {
        let columns = format!("{:>5} {:>5} {:>9}", "tries", "right", "leftovers");
        let harness = Harness::new(NAME_WIDTH, "fault", &columns);
        Self {
            is_long: harness.is_long(),
            harness,
        }
    }

    /// Returns the number that suits the length of the suite.
    pub fn times(&self, usually: u32, long: u32) -> u32 {
        if self.is_long { long } else { usually }
    }

    /// Runs a row. `attempt` gets the number of the try, and panics on an unexpected result.
    pub fn row(&mut self, fault: &str, tries: u32, mut attempt: impl FnMut(u32)) {
        self.row_with_note(fault, tries, |number| {
            attempt(number);
            None
        });
    }

    /// Runs a row whose attempt returns a note, which is printed below the row.
    pub fn row_with_note(
        &mut self,
        fault: &str,
        tries: u32,
        mut attempt: impl FnMut(u32) -> Option<String>,
    ) {
        self.report(fault, tries, || {
            let mut right = 0;
            let mut note = None;
            for number in 0..tries {
                if let Some(result) = harness::attempt(|| attempt(number)) {
                    right += 1;
                    note = result;
                }
            }
            (right, note)
        });
    }

    /// Runs a row whose tries, one for each of `faults`, run at the same time, because they
    /// mostly wait.
    pub fn row_at_once<Fault: Sync>(
        &mut self,
        name: &str,
        faults: &[Fault],
        attempt: impl Fn(&Fault) + Sync,
    ) {
        let tries = u32::try_from(faults.len()).expect("a row has few tries");
        self.report(name, tries, || {
            let attempt = &attempt;
            let right = thread::scope(|scope| {
                let running: Vec<_> = faults
                    .iter()
                    .map(|fault| scope.spawn(move || attempt(fault)))
                    .collect();
                // A try that panics has printed why.
                running
                    .into_iter()
                    .map(|running| u32::from(running.join().is_ok()))
                    .sum()
            });
            (right, None)
        });
    }

    /// Runs the tries of a row, and prints how many were right, the note, and what is left.
    fn report(
        &mut self,
        fault: &str,
        tries: u32,
        run_tries: impl FnOnce() -> (u32, Option<String>),
    ) {
        self.harness.run(fault, || {
            let (right, note) = run_tries();
            let left = left_of(&prefix());
            let leftovers = left.lines().count();
            Row {
                cells: format!("{tries:>5} {right:>5} {leftovers:>9}"),
                below: note.map_or(String::new(), |note| format!("  {note}\n")) + &left,
                has_passed: right == tries && leftovers == 0,
            }
        });
    }

    /// Prints the numbers of rows. Returns the program's status.
    pub fn finish(self) -> ExitCode {
        self.harness.finish("passed", "failed")
    }
}

/// Returns the `nspawn-prepare` command for a machine of this name.
pub fn prepare(name: &str) -> Command {
    let mut command = Command::new("nspawn-prepare");
    command.args(["--name", name, &image()]);
    command
}
