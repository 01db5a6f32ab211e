//! Text for terminals and messages.

/// Returns `bytes` as text of one line, with control characters replaced by `?`.
///
/// Machines may be hostile: their output must not reach a terminal as escape sequences.
pub fn printable(bytes: &[u8]) -> String {
    let replace_control = |c: char| if c.is_control() { '?' } else { c };
    String::from_utf8_lossy(bytes)
        .chars()
        .map(replace_control)
        .collect()
}

/// Applies [`printable`] to each line of `text`.
pub fn printable_lines(text: &str) -> String {
    let lines: Vec<_> = text
        .lines()
        .map(|line| printable(line.as_bytes()))
        .collect();
    lines.join("\n")
}

/// Returns `text` on lines of its own, indented to stand below the line that it explains.
pub fn indent(text: &str) -> String {
    text.lines().flat_map(|line| ["\n  ", line]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_replaced() {
        assert_eq!(printable(b"no \x1b[31mbash\n\xff"), "no ?[31mbash?\u{fffd}");
        assert_eq!(printable_lines("a\x07\nb"), "a?\nb");
    }

    #[test]
    fn every_line_is_indented() {
        assert_eq!(indent("a\nb"), "\n  a\n  b");
        assert_eq!(indent(""), "");
    }
}
