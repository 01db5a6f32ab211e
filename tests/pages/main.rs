//! The command blocks of the pages, run as they stand, in their order: what a reader types.

#![allow(clippy::unwrap_used)]

mod block;
mod place;

use std::path::Path;

use block::Content;
use nspawn_tests::sh;
use place::Place;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Runs the page's commands, each block in a directory of its own, and looks at what is left of machines.
fn follow(page: &str, place: &Place) {
    let mut files = Vec::new();
    for block in block::of(&repository().join(page)) {
        match block.content {
            Content::File { path, text } if path.starts_with('/') => {
                let done = place.take(&path, &text);
                println!("{}: {}", block.place, done.status);
                let first = text
                    .split_whitespace()
                    .find(|word| word.starts_with("--property="))
                    .unwrap();
                assert!(
                    done.status.success() && done.out().contains(first),
                    "{}: {}",
                    block.place,
                    done.describe()
                );
            }
            Content::File { path, text } => files.push((path, text)),
            Content::Commands(commands) => {
                let done = place.run(&files, &commands);
                println!("{}: {}", block.place, done.status);
                assert!(
                    done.status.success(),
                    "{}: {}",
                    block.place,
                    done.describe()
                );
                let left =
                    sh("ls /run/nspawn-ci /var/lib/nspawn-ci/machines 2>/dev/null | grep -v :$")
                        .out();
                assert_eq!(left.trim(), "", "{} leaves machines", block.place);
            }
            Content::NotRun(reason) => println!("{}: not run: {reason}", block.place),
            Content::Other => {}
        }
    }
}

#[test]
fn the_front_page() {
    let place = Place::without_images();
    follow("README.md", &place);
}

#[test]
fn what_a_machine_is() {
    follow("nspawn-prepare/README.md", &Place::new());
}

#[test]
fn recipes() {
    follow("scripts/docs/recipes.md", &Place::new());
}

#[test]
fn the_other_pages() {
    for page in [
        "nspawn-common/README.md",
        "nspawn-run/README.md",
        "scripts/docs/administration.md",
        "scripts/docs/gitlab.md",
        "scripts/docs/images.md",
        "tests/README.md",
    ] {
        follow(page, &Place::new());
    }
}
