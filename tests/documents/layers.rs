//! The order of the layers: no module imports one above itself, and no modules form a circle.

mod imports;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::repository;
use crate::sources::{self, ROOT, is_in};
use imports::Imports;

/// Layers of a crate from the bottom up. Each is a list of rooms: a module and all modules below
/// it, except for those that are listed on their own.
type Layers = &'static [&'static [&'static str]];

const COMMON: Layers = &[
    &["error", "text", "shell"],
    &["sys"],
    &["command"],
    &["config", "cli"],
    &["machine"],
    &["systemd"],
    &["image", "agent"],
    &["lifecycle"],
    &["gitlab"],
    &["exit_code"],
    &["report"],
    &["program"],
    &[ROOT],
];

const PREPARE: Layers = &[
    &[
        "device",
        "diagnostics",
        "internal_form",
        "preflight",
        "recorder",
        "slice",
    ],
    &["layer", "network"],
    &["cli"],
    &["options"],
    &["launcher", "services::network"],
    &["create::step", "create::spec"],
    &["create::start_commands"],
    &["create::state"],
    &["create::plan"],
    &["gitlab", "services", "standby"],
    &["create"],
    &["commands"],
    &[ROOT],
];

const RUN: Layers = &[
    &["cli"],
    &["agent"],
    &["client"],
    &["target", "service_logs"],
    &["commands"],
    &[ROOT],
];

const CLEANUP: Layers = &[&["cli"], &["listing", "remove", "unused_caches"], &[ROOT]];

/// Returns each violation of the order of `layers`, as a line.
fn violations(imports: &Imports, layers: Layers) -> Vec<String> {
    let mut lines = Vec::new();
    let rooms: Vec<&str> = layers.iter().copied().flatten().copied().collect();
    for module in imports.keys() {
        if room_of(module, &rooms).is_none() {
            lines.push(format!("{module} is in no layer"));
        }
    }
    for room in &rooms {
        if !imports.keys().any(|module| is_in(module, room)) {
            lines.push(format!("{room} is in a layer, and is no module"));
        }
    }
    for (module, targets) in imports {
        for target in targets {
            if height(module, layers) < height(target, layers) {
                lines.push(format!("{module} imports {target}, which is above it"));
            }
        }
    }
    lines.extend(circles(imports).map(|circle| format!("modules import each other: {circle}")));
    lines.extend(room_circles(imports, layers));
    lines
}

/// Returns the innermost room of `module`.
fn room_of<'a>(module: &str, rooms: &[&'a str]) -> Option<&'a str> {
    let rooms = rooms.iter().filter(|room| is_in(module, room));
    rooms.max_by_key(|room| room.len()).copied()
}

/// Returns the number of layers below that of `module`.
fn height(module: &str, layers: Layers) -> Option<usize> {
    let rooms: Vec<&str> = layers.iter().copied().flatten().copied().collect();
    let room = room_of(module, &rooms)?;
    layers.iter().position(|layer| layer.contains(&room))
}

/// Returns circles between the rooms of a layer that are not circles between single modules.
fn room_circles(imports: &Imports, layers: Layers) -> Vec<String> {
    let mut lines = Vec::new();
    for layer in layers {
        let mut rooms = Imports::new();
        for (module, targets) in imports {
            let Some(room) = room_of(module, layer) else {
                continue;
            };
            let others = targets.iter().filter_map(|target| room_of(target, layer));
            rooms
                .entry(room.to_owned())
                .or_default()
                .extend(others.filter(|other| *other != room).map(str::to_owned));
        }
        lines.extend(circles(&rooms).map(|circle| format!("rooms import each other: {circle}")));
    }
    lines
}

/// Returns a shortest circle through each module that is in one. Each circle begins with its first
/// module by name, so that it is listed once.
fn circles(imports: &Imports) -> impl Iterator<Item = String> {
    let circles: BTreeSet<Vec<&str>> = imports
        .keys()
        .filter_map(|module| shortest_circle(module, imports))
        .map(|mut circle| {
            let first = circle.iter().enumerate().min_by_key(|(_, name)| **name);
            let first = first.map_or(0, |(index, _)| index);
            circle.rotate_left(first);
            circle
        })
        .collect();
    circles
        .into_iter()
        .map(|circle| [&circle[..], &circle[..1]].concat().join(" -> "))
}

/// Searches for the way of imports from `start` back to itself.
fn shortest_circle<'a>(start: &'a str, imports: &'a Imports) -> Option<Vec<&'a str>> {
    let mut importers: BTreeMap<&str, &str> = BTreeMap::new();
    let mut queue = VecDeque::from([start]);
    while let Some(module) = queue.pop_front() {
        for target in imports.get(module).into_iter().flatten() {
            if target == start {
                let mut circle = vec![module];
                while let Some(importer) = importers.get(circle[circle.len() - 1]) {
                    circle.push(importer);
                }
                circle.reverse();
                return Some(circle);
            }
            if !importers.contains_key(&**target) {
                importers.insert(target, module);
                queue.push_back(target);
            }
        }
    }
    None
}

#[track_caller]
fn check(name: &str, layers: Layers) {
    let imports = imports::of_sources(&sources::of_crate(&repository().join(name)));
    let lines = violations(&imports, layers);
    assert!(
        lines.is_empty(),
        "{name} has {} violations of the order of its layers:\n{}",
        lines.len(),
        lines.join("\n")
    );
}

#[test]
fn common_imports_only_downward() {
    check("nspawn-common", COMMON);
}

#[test]
fn prepare_imports_only_downward() {
    check("nspawn-prepare", PREPARE);
}

#[test]
fn run_imports_only_downward() {
    check("nspawn-run", RUN);
}

#[test]
fn cleanup_imports_only_downward() {
    check("nspawn-cleanup", CLEANUP);
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::sources::Source;

    const LAYERS: Layers = &[
        &["low", "high::base"],
        &["middle", "side"],
        &["high"],
        &[ROOT],
    ];

    /// Returns the violations of a crate that has all rooms, and in it these files.
    fn violations_of(files: &[(&str, &str)]) -> Vec<String> {
        let rooms = [
            "lib.rs",
            "low.rs",
            "high/base.rs",
            "middle/mod.rs",
            "side.rs",
            "high/mod.rs",
        ];
        let empty = rooms
            .iter()
            .filter(|room| !files.iter().any(|(path, _)| path == *room));
        let sources: Vec<Source> = empty
            .map(|path| (*path, ""))
            .chain(files.iter().copied())
            .map(|(path, text)| Source::parse(Path::new(path), text))
            .collect();
        violations(
            &imports::of_sources(&sources::without_test_modules(sources)),
            LAYERS,
        )
    }

    #[test]
    fn imports_of_lower_layers_pass() {
        let files = [
            (
                "high/mod.rs",
                "mod base; use self::base::X; use crate::middle;",
            ),
            ("middle/mod.rs", "mod a; use crate::high::base; use a::X;"),
            (
                "middle/a.rs",
                "use crate::{low, side}; #[cfg(test)] mod tests { use crate::high; }",
            ),
            ("lib.rs", "mod high; fn main() { high::run() }"),
        ];
        assert_eq!(violations_of(&files), [""; 0]);
    }

    #[test]
    fn an_upward_import_is_a_violation() {
        let expected = ["low imports middle::a, which is above it"];
        let file = ("middle/a.rs", "");
        for import in [
            "use crate::middle::a;",
            "use crate::{high::base, middle::a::{X, Y}};",
            "use super::middle::a::X;",
            "fn f() { crate::middle::a::g() }",
        ] {
            assert_eq!(violations_of(&[file, ("low.rs", import)]), expected);
        }
        assert_eq!(
            violations_of(&[("low.rs", "use crate::PROGRAM;")]),
            ["low imports lib, which is above it"]
        );
    }

    #[test]
    fn a_circle_of_two_files_is_a_violation() {
        let files = [
            ("middle/a.rs", "use super::b::X;"),
            ("middle/b.rs", "use crate::middle::a;"),
        ];
        assert_eq!(
            violations_of(&files),
            ["modules import each other: middle::a -> middle::b -> middle::a"]
        );
        let parent_and_child = [
            ("middle/mod.rs", "mod a; use a::X;"),
            ("middle/a.rs", "use super::Y;"),
        ];
        assert_eq!(
            violations_of(&parent_and_child),
            ["modules import each other: middle -> middle::a -> middle"]
        );
    }

    #[test]
    fn a_circle_of_three_files_is_a_violation() {
        let files = [
            ("middle/a.rs", "use super::b::X;"),
            ("middle/b.rs", "use super::{c, c::Y};"),
            ("middle/c.rs", "fn f() { super::a::g() }"),
        ];
        assert_eq!(
            violations_of(&files),
            ["modules import each other: middle::a -> middle::b -> middle::c -> middle::a"]
        );
    }

    #[test]
    fn a_circle_of_rooms_is_a_violation() {
        let files = [
            ("middle/a.rs", "use crate::side;"),
            ("side.rs", "use crate::middle::b;"),
            ("middle/b.rs", ""),
        ];
        assert_eq!(
            violations_of(&files),
            ["rooms import each other: middle -> side -> middle"]
        );
    }

    #[test]
    fn each_module_is_in_a_layer_and_each_room_has_a_module() {
        let sources = ["lib.rs", "low.rs", "new.rs"].map(|path| Source::parse(Path::new(path), ""));
        assert_eq!(
            violations(&imports::of_sources(&sources), &[&["low", "old"], &[ROOT]]),
            ["new is in no layer", "old is in a layer, and is no module"]
        );
    }
}
