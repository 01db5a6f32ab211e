//! Man pages: written by hand, but for the options.

use std::ops::Range;

use clap::Command;
use clap_mangen::Man;

const NOTE: &str =
    r#".\" Made from the program's own options; what is written here is overwritten."#;

/// The page `text` with the options of `command`.
pub fn with_options(text: &str, command: &Command) -> String {
    let place = section(text, "OPTIONS").unwrap();
    format!(
        "{}{}{}",
        &text[..place.start],
        options(command),
        &text[place.end..]
    )
}

/// Where a section is, with its heading.
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
    // Those under headings of their own are a part of the section. The string is of a whole page's beginning.
    format!(
        "{heading}\n{NOTE}\n{}",
        body.replace(".SH ", ".SS ").replace(r"\*(Aq", r"\(aq")
    )
}
