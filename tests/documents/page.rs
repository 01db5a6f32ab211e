//! Man pages. Only their section of options is generated.

use std::ops::Range;

use clap::Command;
use clap_mangen::Man;

const NOTE: &str =
    r#".\" Made from the program's own options; what is written here is overwritten."#;

/// Replaces the section of options in the page `text` by the options of `command`.
pub fn with_options(text: &str, command: &Command) -> String {
    let place = section(text, "OPTIONS").unwrap();
    format!(
        "{}{}{}",
        &text[..place.start],
        options(command),
        &text[place.end..]
    )
}

/// Returns the range of a section, with its heading.
pub fn section(text: &str, name: &str) -> Option<Range<usize>> {
    let heading = format!("\n.SH {name}\n");
    let quoted = format!("\n.SH \"{name}\"\n");
    let start = text.find(&heading).or_else(|| text.find(&quoted))? + 1;
    let end = text[start..]
        .find("\n.SH ")
        .map_or(text.len(), |length| start + length + 1);
    Some(start..end)
}

fn options(command: &Command) -> String {
    let mut bytes = Vec::new();
    Man::new(command.clone())
        .render_options_section(&mut bytes)
        .unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let start = text.find(".SH OPTIONS\n").unwrap();
    let (heading, body) = text[start..].split_once('\n').unwrap();
    // Groups of options become subsections. The string \*(Aq is defined only at the start of a
    // whole page.
    format!(
        "{heading}\n{NOTE}\n{}",
        body.replace(".SH ", ".SS ").replace(r"\*(Aq", r"\(aq")
    )
}
