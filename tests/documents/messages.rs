//! The lines that the page of troubles explains are lines that the programs say.

use std::fs;
use std::path::Path;

use crate::repository;

const PAGE: &str = "scripts/docs/troubleshooting.md";

/// What stands in the first column of the page's tables, in code.
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

/// All that is written in the sources, each string in one line.
fn sources(directory: &Path, text: &mut String) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&fs::read_to_string(path).unwrap());
        }
    }
}

fn joined(text: &str) -> String {
    text.split("\\\n").map(str::trim_start).collect()
}

#[test]
fn every_line_that_is_explained_is_said() {
    let page = fs::read_to_string(repository().join(PAGE)).unwrap();
    let messages = messages(&page);
    assert!(messages.len() > 30, "{messages:?}");
    let mut said = String::new();
    for program in [
        "nspawn-prepare",
        "nspawn-run",
        "nspawn-cleanup",
        "nspawn-common",
    ] {
        sources(&repository().join(program).join("src"), &mut said);
    }
    let said = joined(&said);
    let unsaid: Vec<_> = messages
        .iter()
        .filter(|message| !message.split('…').all(|part| said.contains(part)))
        .collect();
    assert_eq!(unsaid, [] as [&&str; 0]);
}
