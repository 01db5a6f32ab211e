//! A test harness for suites that print a table with a row for each test.
//!
//! libtest runs tests at the same time and prints nothing but their names. The rows of these suites
//! share machines and run in order, and their table has further columns. libtest-mimic needs a
//! procedural macro, which Cargo can't build with the static C library that this workspace links.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::machine::{Machine, image};

/// The result of a test.
pub struct Row {
    /// The columns behind the name.
    pub cells: String,
    /// Lines that are printed below the row, or nothing.
    pub below: String,
    /// True if the test passed.
    pub has_passed: bool,
}

/// The arguments of a suite.
#[derive(Debug, Default, PartialEq, Eq)]
struct Arguments {
    filters: Vec<String>,
    is_long: bool,
}

impl Arguments {
    /// Reads filters and options. `--nocapture` is the default, as nothing is captured.
    fn parse(arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut parsed = Self::default();
        for argument in arguments {
            match &*argument {
                "--long" => parsed.is_long = true,
                "--nocapture" => (),
                option if option.starts_with('-') => {
                    return Err(format!("unknown option '{option}'"));
                }
                _ => parsed.filters.push(argument),
            }
        }
        Ok(parsed)
    }

    /// Returns whether a filter is a part of `name`, or there are no filters.
    fn select(&self, name: &str) -> bool {
        let mut filters = self.filters.iter();
        self.filters.is_empty() || filters.any(|filter| name.contains(&**filter))
    }
}

/// A suite: its arguments, and the numbers of tests that have run.
pub struct Harness {
    arguments: Arguments,
    name_width: usize,
    passed: u32,
    failed: u32,
    skipped: u32,
}

impl Harness {
    /// Reads the program's arguments, and prints the first line of the table.
    ///
    /// The arguments are filters, which are parts of the names of the tests to run, and `--long`.
    /// `name_width` is the width of the first column.
    ///
    /// # Panics
    ///
    /// Panics if an option is unknown.
    #[must_use]
    pub fn new(name_width: usize, name: &str, columns: &str) -> Self {
        let arguments = Arguments::parse(std::env::args().skip(1));
        println!("{name:<name_width$} {columns}");
        Self {
            arguments: arguments.unwrap_or_else(|error| panic!("{error}")),
            name_width,
            passed: 0,
            failed: 0,
            skipped: 0,
        }
    }

    /// Returns whether the suite tries more often, and includes tests that take long.
    #[must_use]
    pub fn is_long(&self) -> bool {
        self.arguments.is_long
    }

    /// Runs a test if the filters select it, and prints its row.
    pub fn run(&mut self, name: &str, test: impl FnOnce() -> Row) {
        if !self.arguments.select(name) {
            return;
        }
        let row = test();
        let width = self.name_width;
        println!("{name:<width$} {}", row.cells);
        if !row.below.is_empty() {
            println!("{}", row.below.trim_end());
        }
        if row.has_passed {
            self.passed += 1;
        } else {
            self.failed += 1;
        }
    }

    /// Says that a test does not run here, if the filters select it.
    pub fn skip(&mut self, name: &str, reason: &str) {
        if self.arguments.select(name) {
            let width = self.name_width;
            println!("{name:<width$} skipped: {reason}");
            self.skipped += 1;
        }
    }

    /// Prints the numbers of tests, with these words behind them. Returns the program's status.
    #[must_use]
    pub fn finish(self, passed: &str, failed: &str) -> ExitCode {
        let (right, wrong, skipped) = (self.passed, self.failed, self.skipped);
        println!("{right} {passed}, {wrong} {failed}, {skipped} skipped");
        if self.failed == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

/// Runs a part of a test. Returns `None` if it panics, whose message is on stderr then.
pub fn attempt<Value>(work: impl FnOnce() -> Value) -> Option<Value> {
    catch_unwind(AssertUnwindSafe(work)).ok()
}

/// Returns the prefix of the names of all machines of this run.
#[must_use]
pub fn prefix() -> String {
    format!("suite-{}", std::process::id())
}

/// Returns a unique name.
pub fn name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("{}-{}", prefix(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Creates a machine with a unique name, which is removed when the value is dropped.
#[track_caller]
pub fn machine(options: &[&str]) -> Machine {
    machine_of(&image(), options)
}

/// Creates such a machine from another image than the host's.
#[track_caller]
pub fn machine_of(image: &str, options: &[&str]) -> Machine {
    Machine::of(image, &[&["--name", &*name()], options].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, String> {
        Arguments::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn filters_and_options_stand_in_any_order() {
        let arguments = parse("one --long --nocapture two").unwrap();
        assert!(arguments.is_long);
        assert_eq!(arguments.filters, ["one", "two"]);
        assert_eq!(parse("").unwrap(), Arguments::default());
    }

    #[test]
    fn unknown_options_are_errors() {
        assert_eq!(parse("--skip one").unwrap_err(), "unknown option '--skip'");
    }

    #[test]
    fn any_filter_selects_a_test_and_none_selects_all() {
        let arguments = parse("kill --nocapture agent").unwrap();
        assert!(arguments.select("the agent ends"));
        assert!(arguments.select("it is killed"));
        assert!(!arguments.select("the layer is full"));
        assert!(Arguments::default().select("the layer is full"));
    }

    #[test]
    fn rows_that_are_not_selected_do_not_run() {
        let mut harness = Harness {
            arguments: parse("one").unwrap(),
            name_width: 5,
            passed: 0,
            failed: 0,
            skipped: 0,
        };
        let row = |has_passed| Row {
            cells: String::new(),
            below: String::new(),
            has_passed,
        };
        harness.run("one", || row(true));
        harness.run("one more", || {
            row(attempt(|| panic!("on purpose")).is_some())
        });
        harness.run("two", || panic!("it must not run"));
        assert_eq!((harness.passed, harness.failed), (1, 1));
    }
}
