//! The form of the programs' messages, as far as their text shows it: they begin in lower case, end
//! without a full stop, fit on one line, and contain no dialect.

use proc_macro2::{TokenStream, TokenTree};

use crate::repository;
use crate::sources;

const CRATES: [&str; 4] = [
    "nspawn-common",
    "nspawn-prepare",
    "nspawn-run",
    "nspawn-cleanup",
];

/// Macros and functions whose arguments are messages.
const CALLS: [&str; 10] = [
    "anyhow",
    "bail",
    "context",
    "ensure",
    "job",
    "host",
    "print_diagnostic",
    "print_warning",
    "refuse",
    "with_context",
];

/// Words that are unclear or colloquial in a message.
const DIALECT: [&str; 15] = [
    "any more",
    "goes without",
    "is made",
    "is none",
    "leads nowhere",
    "mend",
    "no one",
    "nobody",
    "said",
    "says",
    "shall",
    "somebody",
    "told",
    "too much",
    "whoever",
];

/// Returns the string literals in the arguments of calls that take messages.
fn literals(stream: TokenStream) -> Vec<String> {
    let mut found = Vec::new();
    collect(stream, false, &mut found);
    found
}

fn collect(stream: TokenStream, is_message: bool, found: &mut Vec<String>) {
    let mut is_call = false;
    for token in stream {
        match token {
            TokenTree::Group(group) => {
                collect(group.stream(), is_message || is_call, found);
                is_call = false;
            }
            TokenTree::Ident(ident) => is_call = CALLS.contains(&ident.to_string().as_str()),
            TokenTree::Literal(literal) if is_message => {
                let source = literal.to_string();
                let content = source
                    .strip_prefix('"')
                    .and_then(|text| text.strip_suffix('"'));
                // A separator has no space.
                found.extend(content.filter(|text| text.contains(' ')).map(joined));
            }
            TokenTree::Punct(punct) if punct.as_char() == '!' => {}
            _ => is_call = false,
        }
    }
}

/// Joins the lines of a literal that continues on the next line.
fn joined(literal: &str) -> String {
    let mut parts = literal.split("\\\n");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.trim_start())
}

/// Returns what is wrong with the form of a message.
fn fault(message: &str) -> Option<&'static str> {
    let first_word = message.split([' ', '=', ':']).next().unwrap_or_default();
    let begins_in_upper_case = first_word.starts_with(|letter: char| letter.is_ascii_uppercase());
    // A name such as GitLab or NOTIFY_SOCKET has another capital letter.
    let is_name = first_word
        .chars()
        .skip(1)
        .any(|letter| letter.is_ascii_uppercase());
    if begins_in_upper_case && !is_name {
        return Some("begins with a capital letter");
    }
    if message.ends_with('.') {
        return Some("ends with a full stop");
    }
    if message.contains("\\n") {
        return Some("has more than one line");
    }
    let is_letter = |letter: char| letter.is_alphanumeric() || letter == '\'';
    let words: Vec<_> = message.split(|letter| !is_letter(letter)).collect();
    let words = format!(" {} ", words.join(" ").to_lowercase());
    let is_dialect = |phrase: &&str| words.contains(&format!(" {phrase} "));
    DIALECT.iter().any(is_dialect).then_some("contains dialect")
}

#[test]
fn messages_have_the_form() {
    let mut count = 0;
    let mut faults = Vec::new();
    for name in CRATES {
        for source in sources::of_crate(&repository().join(name)) {
            for message in literals(source.tokens) {
                count += 1;
                if let Some(fault) = fault(&message) {
                    faults.push(format!(
                        "{name}/{}: {fault}: {message}",
                        source.path.display()
                    ));
                }
            }
        }
    }
    assert!(count > 300, "{count}");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn faulty_messages_are_found() {
    let source = r#"
        fn work() -> Result<()> {
            run().with_context(|| format!("Can't run"))?;
            bail!(Failure::job("the image is gone, and there is none \
                               here"));
            print_diagnostic("it has ended.");
            println!("Not. A message.");
            Err(anyhow!("two\n  lines"))
        }"#;
    let messages = literals(source.parse().unwrap());
    let faults: Vec<_> = messages.iter().map(|message| fault(message)).collect();
    assert_eq!(
        faults,
        [
            Some("begins with a capital letter"),
            Some("contains dialect"),
            Some("ends with a full stop"),
            Some("has more than one line"),
        ]
    );
    for message in [
        "can't use the tone: it is nonexistent",
        "GitLab can't be reached",
        "AB=1 is set",
    ] {
        assert_eq!(fault(message), None);
    }
}
