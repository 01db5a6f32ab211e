//! Everyday things that people run in CI, in machines with each init and, in the long form, in
//! podman's containers. The page `everyday.md` for users is made of the same table.
//!
//! | module | contents |
//! | --- | --- |
//! | [`rows`] | the table |
//! | [`row`] | a row, and the comparison of its result with the expected one |
//! | [`place`] | machines and containers |
//! | [`image`] | the image of the rows |
//! | [`page`] | the page |
//! | [`workloads`] | real workloads, in the long form |

// A test stops at the first unexpected result.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod image;
mod page;
mod place;
mod row;
mod rows;
mod workloads;

use std::cell::LazyCell;
use std::collections::HashMap;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use nspawn_tests::harness::{self, Harness};
use nspawn_tests::{image as release_of_host, install, left_of, sh, wait_until};

use place::Runner;
use row::{Place, Row};

const NAME_WIDTH: usize = 70;
/// Time limit for the removal of all machines.
const LEFTOVERS_LIMIT: Duration = Duration::from_secs(60);

/// The machines and containers, by place and option.
type Runners = HashMap<(&'static str, &'static str), Runner>;

fn main() -> ExitCode {
    let mut harness = Harness::new(NAME_WIDTH, "thing", "    s places and results");
    let groups = rows::groups();
    harness.run("the page has these rows", || page::check(&groups));
    // The page is made on any system, which needs no image.
    let image = LazyCell::new(|| image::ensure(&rows::packages()));
    let mut places = vec![Place::Booted, Place::Stub, Place::None];
    if harness.is_long() {
        install("podman");
        places.push(Place::Podman);
    }
    let mut runners = Runners::new();
    for row in groups.iter().flat_map(|group| &group.rows) {
        if row.control.is_some_and(|command| sh(command).code() != 0) {
            harness.skip(row.name, "the kernel of this host lacks it");
            continue;
        }
        harness.run(row.name, || run(row, &places, &image, &mut runners));
    }
    drop(runners);
    if harness.is_long() {
        workloads::run(&mut harness);
    }
    harness.run("nothing is left of the machines", || {
        // Large layers are unmounted in the background.
        let is_empty = || left_of(&harness::prefix()).is_empty();
        wait_until("nothing is left", LEFTOVERS_LIMIT, is_empty);
        harness::Row {
            cells: String::new(),
            below: String::new(),
            has_passed: true,
        }
    });
    harness.finish("as expected", "not as expected")
}

/// Runs a row in all of its places at the same time.
fn run(row: &Row, places: &[Place], image: &str, runners: &mut Runners) -> harness::Row {
    let release = &release_of_host();
    let begin = Instant::now();
    let places: Vec<_> = places
        .iter()
        .copied()
        .filter(|place| row.runs_in(*place))
        .collect();
    for place in &places {
        runners
            .entry((place.word(), row.option))
            .or_insert_with(|| Runner::new(*place, image, row.option));
    }
    let runners = &*runners;
    let judge = |place: Place| {
        let result = runners[&(place.word(), row.option)].run(row);
        let error = row.judge(place, release, &result).err();
        error.map(|error| format!("  {}: {error}\n", place.word()))
    };
    let errors: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = places
            .iter()
            .map(|place| scope.spawn(move || judge(*place)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    let cells = places.iter().zip(&errors).map(|(place, error)| {
        let works = row.exception(*place, release).is_none() == error.is_none();
        format!("{} {}", place.word(), if works { "works" } else { "fails" })
    });
    harness::Row {
        cells: format!(
            "{:>5.1} {}",
            begin.elapsed().as_secs_f32(),
            cells.collect::<Vec<_>>().join(", ")
        ),
        has_passed: errors.iter().all(Option::is_none),
        below: errors.into_iter().flatten().collect(),
    }
}
