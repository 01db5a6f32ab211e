//! Collapsed sections of a job's log.

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

/// Prints a collapsed section on stderr, which the runner copies to the job's log.
///
/// `name` identifies the section and must be unique in the log. It may contain letters, digits,
/// `_`, `.` and `-`.
pub fn print(name: &str, header: &str, body: &str) {
    // Write errors are ignored: there is nowhere left to report them.
    let _ = std::io::stderr().write_all(format(name, header, body).as_bytes());
}

// The format is described in GitLab's documentation, "Custom collapsible sections".
fn format(name: &str, header: &str, body: &str) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let mark =
        |kind: &str, options: &str| format!("\x1b[0Ksection_{kind}:{now}:{name}{options}\r\x1b[0K");
    let (start, end) = (mark("start", "[collapsed=true]"), mark("end", ""));
    format!("{start}{header}\n{body}\n{end}\n")
}

#[cfg(test)]
mod tests {
    #[test]
    fn section_has_marks_of_its_start_and_its_end() {
        let text = super::format("a_1", "title", "one\ntwo");
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].starts_with("\x1b[0Ksection_start:"));
        assert!(lines[0].ends_with(":a_1[collapsed=true]\r\x1b[0Ktitle"));
        assert_eq!(lines[1..3], ["one", "two"]);
        assert!(lines[3].starts_with("\x1b[0Ksection_end:"));
        assert!(lines[3].ends_with(":a_1\r\x1b[0K"));
    }
}
