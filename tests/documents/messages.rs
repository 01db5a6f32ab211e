//! Checks that the messages on the page on troubleshooting are messages of the programs.

use std::fs;
use std::path::Path;

use crate::repository;

const PAGE: &str = "scripts/docs/troubleshooting.md";

/// Returns the code spans in the first column of the page's tables.
fn messages(page: &str) -> Vec<&str> {
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.flat_map(|row| {
        row.split(" | ")
            .next()
            .unwrap_or_default()
            .split('`')
            .step_by(2)
    })
    .filter(|message| !message.is_empty())
    .collect()
}

/// Appends the text of all sources below a directory.
fn read_sources(directory: &Path, text: &mut String) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_sources(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&fs::read_to_string(path).unwrap());
        }
    }
}

/// Joins string literals that continue on the next line.
fn joined(text: &str) -> String {
    text.split("\\\n").map(str::trim_start).collect()
}

#[test]
fn explained_messages_are_in_the_sources() {
    let page = fs::read_to_string(repository().join(PAGE)).unwrap();
    let messages = messages(&page);
    assert!(messages.len() > 30, "{messages:?}");
    let mut sources = String::new();
    for program in [
        "nspawn-prepare",
        "nspawn-run",
        "nspawn-cleanup",
        "nspawn-common",
    ] {
        read_sources(&repository().join(program).join("src"), &mut sources);
    }
    let sources = joined(&sources);
    let missing: Vec<_> = messages
        .iter()
        .filter(|message| !message.split('…').all(|part| sources.contains(part)))
        .collect();
    assert_eq!(missing, [] as [&&str; 0]);
}
