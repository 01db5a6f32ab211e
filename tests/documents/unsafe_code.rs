//! The places of `unsafe` code.

use proc_macro2::{TokenStream, TokenTree};

use crate::repository;
use crate::sources;

/// Modules, each with those below it, that may contain `unsafe`. They wrap system calls.
const ALLOWED: [(&str, &str); 1] = [("nspawn-common", "sys")];

fn has_unsafe(tokens: TokenStream) -> bool {
    tokens.into_iter().any(|token| match token {
        TokenTree::Ident(word) => word == "unsafe",
        TokenTree::Group(group) => has_unsafe(group.stream()),
        _ => false,
    })
}

#[test]
fn unsafe_code_is_only_where_system_calls_are_wrapped() {
    let mut lines = Vec::new();
    for name in [
        "nspawn-common",
        "nspawn-prepare",
        "nspawn-run",
        "nspawn-cleanup",
    ] {
        for source in sources::of_crate(&repository().join(name)) {
            let is_allowed = ALLOWED
                .iter()
                .any(|(owner, room)| *owner == name && sources::is_in(&source.module, room));
            if !is_allowed && has_unsafe(source.tokens) {
                lines.push(format!("{name}/src/{}", source.path.display()));
            }
        }
    }
    assert!(
        lines.is_empty(),
        "{} files outside of the allowed modules have unsafe code:\n{}",
        lines.len(),
        lines.join("\n")
    );
}

#[test]
fn unsafe_blocks_are_found_and_mentions_are_not() {
    let is_found = |text: &str| has_unsafe(text.parse().unwrap());
    assert!(is_found("fn f() { let x = g(unsafe { h() }); }"));
    assert!(is_found("pub unsafe fn f() {}"));
    assert!(!is_found("// unsafe\nfn f() { g(\"unsafe\") }"));
}
