//! The page for users, which is made of the table.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

use nspawn_tests::harness;

use crate::row::{Place, Row};
use crate::rows::Group;
use crate::workloads;

const PAGE: &str = "scripts/docs/everyday.md";

/// Environment variable with which the page is written.
const UPDATE: &str = "NSPAWN_TESTS_UPDATE";

const COLUMNS: [Place; 4] = [Place::Booted, Place::Stub, Place::None, Place::Podman];

const WORKLOADS: &str = "\n## Real workloads\n\n\
    The long form of the tests runs these in a booted machine with all defaults. It also builds ten packages of Debian with\n\
    their own tests, which takes hours.\n\n";

const INTRODUCTION: &str = include_str!("introduction.md");

/// Compares the page with the table, or writes it. Also checks that no failure lacks its reason.
pub fn check(groups: &[Group]) -> harness::Row {
    let mut names = HashSet::new();
    for row in groups.iter().flat_map(|group| &group.rows) {
        let name = row.name;
        assert!(names.insert(name), "two rows are called {name}");
        for exception in &row.exceptions {
            let is_podman = exception.at == Place::Podman.word();
            assert!(
                !exception.message.is_empty(),
                "a failure of {name} has no message"
            );
            assert!(
                is_podman || !exception.reason.is_empty(),
                "a failure of {name} has no reason"
            );
        }
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(PAGE);
    let page = make(groups);
    if env::var_os(UPDATE).is_some() {
        fs::write(&path, &page).unwrap();
    }
    let has_passed = fs::read_to_string(&path).is_ok_and(|found| found == page);
    let below = if has_passed {
        String::new()
    } else {
        format!("  {PAGE} differs; run the test with {UPDATE}=yes")
    };
    harness::Row {
        cells: String::new(),
        below,
        has_passed,
    }
}

fn make(groups: &[Group]) -> String {
    let mut page = INTRODUCTION.to_owned();
    for group in groups {
        let _ = write!(
            page,
            "\n## {}\n\n| thing | booted | stub | none | as podman | option | remark |\n\
             | --- | --- | --- | --- | --- | --- | --- |\n",
            group.name
        );
        for row in &group.rows {
            let results = COLUMNS
                .map(|place| format!("{} | ", result(row, place)))
                .concat();
            let option = if row.option.is_empty() {
                String::new()
            } else {
                format!("`{}` ", row.option)
            };
            let name = row.name.replace('|', "\\|");
            let line = format!("| {name} | {results}{option}| {} |", remarks(row));
            page.push_str(&line.replace("  ", " "));
            page.push('\n');
        }
    }
    page.push_str(WORKLOADS);
    for workload in workloads::WORKLOADS {
        let _ = writeln!(page, "- {}", workload.name);
    }
    page
}

/// Returns the result in a place, on a release without exceptions.
fn result(row: &Row, place: Place) -> &'static str {
    if !row.runs_in(place) {
        "-"
    } else if row.exception(place, "").is_some() {
        "no"
    } else {
        "yes"
    }
}

/// Returns the reasons of all failures, and the remark of the row.
fn remarks(row: &Row) -> String {
    let reasons = row
        .exceptions
        .iter()
        .filter(|exception| !exception.reason.is_empty());
    let reasons = reasons.map(|exception| match exception.at {
        "machine" => exception.reason.to_owned(),
        at => format!("{at}: {}", exception.reason),
    });
    let remark = (!row.remark.is_empty()).then(|| row.remark.to_owned());
    reasons.chain(remark).collect::<Vec<_>>().join(" ")
}
