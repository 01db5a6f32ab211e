//! Parts of a job's log that a person opens when they want to.

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::machine::paths::MachinePaths;
use crate::sys::clock::Moment;
use crate::systemd::journal;

/// Shows in a job's log, on stderr, what a machine has said since then, as the section `name`. `what` it is of.
pub fn show_log(name: &str, what: &str, paths: &MachinePaths, since: Moment) {
    // What can't be read is nothing to show, and a stderr that is gone nobody to show it to.
    let said = journal::last_words(paths, since).unwrap_or_default();
    let _ = std::io::stderr().write_all(section(name, &format!("Log of {what}"), &said).as_bytes());
}

// A collapsed section of a job's log: `header`, and `body` below it (GitLab's documentation, "Custom collapsible
// sections"). Its name is of letters, digits, `_`, `.` and `-`, and in a log once.
fn section(name: &str, header: &str, body: &str) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let mark =
        |kind: &str, options: &str| format!("\x1b[0Ksection_{kind}:{now}:{name}{options}\r\x1b[0K");
    format!(
        "{}{header}\n{body}\n{}\n",
        mark("start", "[collapsed=true]"),
        mark("end", "")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_has_a_beginning_and_an_end() {
        let text = section("a_1", "title", "one\ntwo");
        let lines: Vec<_> = text.lines().collect();
        assert!(
            lines[0].starts_with("\x1b[0Ksection_start:")
                && lines[0].ends_with(":a_1[collapsed=true]\r\x1b[0Ktitle")
        );
        assert_eq!(lines[1..3], ["one", "two"]);
        assert!(lines[3].starts_with("\x1b[0Ksection_end:") && lines[3].ends_with(":a_1\r\x1b[0K"));
    }
}
