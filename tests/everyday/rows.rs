//! The rows, by group.

mod files;
mod languages;
mod network;
mod packaging;
mod processes;
mod sandboxes;
mod servers;
mod streams;
mod system;
mod users;

use crate::row::Row;

/// Rows that belong together.
pub struct Group {
    /// The heading on the page.
    pub name: &'static str,
    /// The rows.
    pub rows: Vec<Row>,
}

/// Returns all groups.
pub fn groups() -> Vec<Group> {
    let group = |name, rows| Group { name, rows };
    vec![
        group("Files and owners", files::rows()),
        group("Users", users::rows()),
        group("Processes", processes::rows()),
        group("Networks", network::rows()),
        group("The system", system::rows()),
        group("Streams, terminals, shared memory", streams::rows()),
        group("Languages and tools", languages::rows()),
        group("Sandboxes and 32-bit programs", sandboxes::rows()),
        group("Databases and servers", servers::rows()),
        group("Archives, documents, packages", packaging::rows()),
    ]
}

/// Returns the packages of the image, which the rows need.
pub fn packages() -> String {
    let mut packages: Vec<&str> = [
        files::PACKAGES,
        users::PACKAGES,
        processes::PACKAGES,
        network::PACKAGES,
        system::PACKAGES,
        streams::PACKAGES,
        languages::PACKAGES,
        sandboxes::PACKAGES,
        servers::PACKAGES,
        packaging::PACKAGES,
    ]
    .iter()
    .flat_map(|packages| packages.split_whitespace())
    .collect();
    packages.sort_unstable();
    packages.dedup();
    packages.join(" ")
}
