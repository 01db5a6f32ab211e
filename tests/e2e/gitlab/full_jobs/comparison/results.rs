//! The result of a job, as text that two runners have in common.

use std::fmt::Write as _;

use nspawn_tests::gitlab_server::{FormFile, GitLab, ServerJob};

/// Sections whose text comes from the runner's own scripts and from its helper.
const FILLED_BY_RUNNER: [&str; 9] = [
    "get_sources",
    "clear_worktree",
    "restore_cache",
    "download_artifacts",
    "archive_cache",
    "archive_cache_on_failure",
    "upload_artifacts_on_success",
    "upload_artifacts_on_failure",
    "cleanup_file_variables",
];

/// Returns what can be compared of a job, as text.
pub fn comparable(gitlab: &GitLab, job: &ServerJob) -> String {
    let mut report = job.report.clone();
    let size = report["output"]["bytesize"].as_u64();
    if let Some(fields) = report.as_object_mut() {
        // These identify the runner and the log.
        for key in ["token", "info", "checksum", "output"] {
            fields.remove(key);
        }
    }
    let is_whole = size == u64::try_from(job.trace.len()).ok();
    let mut text = format!("{:?} {report}, whole log: {is_whole}\n", job.status);
    if let Some(file) = &job.artifacts {
        let _ = writeln!(text, "artifacts: {}{}", file.name, entries(file));
    }
    text + &sections(gitlab, job)
}

/// Returns names, sizes and modes of the files of an archive, from its central directory.
fn entries(file: &FormFile) -> String {
    let content = &file.content;
    let number = |at: usize, count: usize| {
        (0..count).fold(0, |sum, index| {
            sum | usize::from(content[at + index]) << (8 * index)
        })
    };
    // Directories of files need no entries.
    let starts = (0..content.len()).filter(|at| content[*at..].starts_with(b"PK\x01\x02"));
    let mut text = String::new();
    for at in starts {
        let name = String::from_utf8_lossy(&content[at + 46..at + 46 + number(at + 28, 2)]);
        if name.ends_with('/') {
            continue;
        }
        let _ = write!(
            text,
            ", {name}: {} bytes, mode {:o}",
            number(at + 24, 4),
            number(at + 40, 2)
        );
    }
    text
}

/// Returns the log from its first section on, without times, colours and names of this job.
fn sections(gitlab: &GitLab, job: &ServerJob) -> String {
    let log = without_escapes(&job.log());
    let machine = log
        .split_once("Running on ")
        .and_then(|(_, rest)| rest.split_once(" via "))
        .map_or("no machine", |(name, _)| name);
    let log = log
        .replace(machine, "MACHINE")
        .replace(&gitlab.url(), "URL")
        .replace(&job.id.to_string(), "ID");
    let mut text = String::new();
    for part in log.split("section_").skip(1) {
        let (mark, content) = part.split_once('\r').unwrap_or((part, ""));
        let mut words = mark.split(':');
        let (kind, name) = (words.next(), words.nth(1));
        let (kind, name) = (kind.unwrap_or_default(), name.unwrap_or_default());
        let is_filled_by_runner = kind == "start" && FILLED_BY_RUNNER.contains(&name);
        let _ = writeln!(text, "[{kind} of {name}]");
        let count = if is_filled_by_runner { 1 } else { usize::MAX };
        for line in content.lines().filter(|line| is_compared(line)).take(count) {
            let _ = writeln!(text, "{}", without_numbers(line));
        }
    }
    text
}

/// Returns whether the line is compared: it is no statement of the runner about a stage, and not one
/// of [`WAIT`](super::WAIT).
fn is_compared(line: &str) -> bool {
    let statements = [
        "WARNING: ",
        "ERROR: Preparation failed: ",
        "Will be retried in ",
    ];
    line != "tick"
        && !statements
            .iter()
            .any(|statement| line.starts_with(statement))
}

/// Removes digits from a line that differs from run to run: one with a time, or with numbers of
/// scripts, lines and processes.
fn without_numbers(line: &str) -> String {
    let has_numbers = [" is ready after ", " has used ", "/run/nspawn-script-"]
        .iter()
        .any(|words| line.contains(words));
    let is_kept = |byte: &char| !has_numbers || !byte.is_ascii_digit();
    line.chars().filter(is_kept).collect()
}

/// Removes escape sequences for colours and for the rest of a line.
fn without_escapes(log: &str) -> String {
    let mut parts = log.split("\x1b[");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(|byte: char| byte.is_ascii_alphabetic());
        text += end.map_or("", |end| &part[end + 1..]);
    }
    text
}

#[test]
fn escapes_are_removed() {
    assert_eq!(without_escapes("a\x1b[32;1mb\x1b[0;m\r\x1b[0Kc"), "ab\rc");
}
