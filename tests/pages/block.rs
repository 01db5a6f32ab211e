//! The fenced blocks of a page.

use std::fs;
use std::path::Path;

/// Comment before a block that is not run, with the reason.
const NOT_RUN: &str = "<!-- not run here: ";

/// A block of a page.
#[derive(Debug)]
pub struct Block {
    /// The block's page and line, for messages.
    pub place: String,
    pub content: Content,
}

/// The kind of a block, and its text.
#[derive(Debug)]
pub enum Content {
    /// Commands for a shell.
    Commands(String),
    /// Commands that are not run, for this reason.
    NotRun(String),
    /// A file, whose path is in the first line.
    File { path: String, text: String },
    /// Anything else.
    Other,
}

/// Reads the blocks of a page, in their order.
pub fn read(page: &Path) -> Vec<Block> {
    let text =
        fs::read_to_string(page).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
    let lines: Vec<&str> = text.lines().collect();
    let mut blocks = Vec::new();
    let mut number = 0;
    while let Some(start) = (number..lines.len()).find(|number| lines[*number].starts_with("```")) {
        let end = (start + 1..lines.len())
            .find(|number| lines[*number] == "```")
            .expect("a block has an end");
        let body: String = lines[start + 1..end]
            .iter()
            .map(|line| format!("{line}\n"))
            .collect();
        let before = if start == 0 { "" } else { lines[start - 1] };
        let place = format!("{}:{}", page.display(), start + 1);
        blocks.push(Block {
            place,
            content: content(&lines[start][3..], before, body),
        });
        number = end + 1;
    }
    blocks
}

fn content(language: &str, before: &str, text: String) -> Content {
    assert!(
        !before.starts_with("<!--") || before.starts_with(NOT_RUN),
        "{before:?} is an unknown mark"
    );
    let path = text
        .lines()
        .next()
        .and_then(|line| line.strip_prefix("# "))
        .filter(|path| !path.contains(' '));
    match (before.strip_prefix(NOT_RUN), path) {
        (Some(reason), _) => Content::NotRun(reason.trim_end_matches(" -->").to_owned()),
        (None, Some(path)) => Content::File {
            path: path.to_owned(),
            text,
        },
        (None, None) if language == "sh" => Content::Commands(text),
        (None, None) => Content::Other,
    }
}
