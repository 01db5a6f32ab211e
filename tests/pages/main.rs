//! Runs the command blocks of the pages without changes and in their order, as a reader types them.

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

/// Runs the commands of a page, each block in a directory of its own. A block must leave no
/// machines.
fn run_page(page: &str, place: &Place) {
    let mut files = Vec::new();
    for block in block::read(&repository().join(page)) {
        match block.content {
            Content::File { path, text } if path.starts_with('/') => {
                let done = place.check_argument_file(&path, &text);
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
                assert_eq!(left.trim(), "", "{} leaves machines behind", block.place);
            }
            Content::NotRun(reason) => println!("{}: not run: {reason}", block.place),
            Content::Other => {}
        }
    }
}

#[test]
fn commands_of_the_front_page_work() {
    let place = Place::without_images();
    run_page("README.md", &place);
}

#[test]
fn commands_of_the_page_of_machines_work() {
    run_page("nspawn-prepare/README.md", &Place::new());
}

#[test]
fn commands_of_the_recipes_work() {
    run_page("scripts/docs/recipes.md", &Place::new());
}

#[test]
fn commands_of_the_other_pages_work() {
    for page in [
        "nspawn-common/README.md",
        "nspawn-run/README.md",
        "scripts/docs/administration.md",
        "scripts/docs/gitlab.md",
        "scripts/docs/images.md",
        "tests/README.md",
    ] {
        run_page(page, &Place::new());
    }
}
