//! The source files of a crate as tokens, without the code that only tests compile.

use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// The module of the crate's root.
pub const ROOT: &str = "lib";

/// A module that has a file of its own.
pub struct Source {
    /// The path below the crate, such as `machine::paths`, or [`ROOT`].
    pub module: String,
    /// The file, relative to the crate's `src`.
    pub path: PathBuf,
    /// The module's code. Comments are not a part of it, and strings are one token each.
    pub tokens: TokenStream,
    /// Modules below this one that only tests compile.
    test_modules: Vec<String>,
}

impl Source {
    /// Parses a file. `path` is relative to the crate's `src`.
    pub fn parse(path: &Path, text: &str) -> Self {
        let module = module_of(path);
        let tokens: TokenStream = text
            .parse()
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut test_modules = Vec::new();
        let tokens = without_tests(tokens, &mut test_modules);
        let parent = if module == ROOT { "" } else { &*module };
        Self {
            test_modules: test_modules.iter().map(|name| join(parent, name)).collect(),
            path: path.to_owned(),
            tokens,
            module,
        }
    }
}

/// Reads the library of a crate. `main.rs` is another crate, which only calls the library.
pub fn of_crate(directory: &Path) -> Vec<Source> {
    let src = directory.join("src");
    let mut paths = Vec::new();
    find_files(&src, &mut paths);
    paths.sort();
    let parse = |path: &PathBuf| {
        let text = fs::read_to_string(path).unwrap();
        Source::parse(path.strip_prefix(&src).unwrap(), &text)
    };
    without_test_modules(
        paths
            .iter()
            .filter(|path| !path.ends_with("src/main.rs"))
            .map(parse)
            .collect(),
    )
}

/// Removes the files of modules that only tests compile.
pub fn without_test_modules(mut sources: Vec<Source>) -> Vec<Source> {
    let test_modules: Vec<String> = sources
        .iter()
        .flat_map(|source| source.test_modules.clone())
        .collect();
    sources.retain(|source| !test_modules.iter().any(|test| is_in(&source.module, test)));
    sources
}

/// Returns whether `module` is `room` or a module below it.
pub fn is_in(module: &str, room: &str) -> bool {
    module
        .strip_prefix(room)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// Returns the path of `name` in `module`, where an empty path is the crate's root.
pub fn join(module: &str, name: &str) -> String {
    if module.is_empty() {
        name.to_owned()
    } else {
        format!("{module}::{name}")
    }
}

/// Returns the brackets' tokens of an attribute whose `#` stands at `index`, and the number of
/// tokens that the attribute takes.
fn attribute(tokens: &[TokenTree], index: usize) -> Option<(String, usize)> {
    let is_punct = |index: usize, wanted| matches!(tokens.get(index), Some(TokenTree::Punct(punct)) if punct.as_char() == wanted);
    if !is_punct(index, '#') {
        return None;
    }
    let length = if is_punct(index + 1, '!') { 3 } else { 2 };
    match tokens.get(index + length - 1) {
        Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Bracket => {
            Some((group.stream().to_string(), length))
        }
        _ => None,
    }
}

fn without_tests(stream: TokenStream, test_modules: &mut Vec<String>) -> TokenStream {
    let tokens: Vec<TokenTree> = stream.into_iter().collect();
    let mut kept = Vec::new();
    let mut index = 0;
    while index < tokens.len() {
        if let Some((text, length)) = attribute(&tokens, index) {
            if is_test_only(&text) {
                if length == 3 {
                    return TokenStream::new();
                }
                let end = item_end(&tokens, index + length);
                test_modules.extend(module_name(&tokens[index..end]));
                index = end;
                continue;
            }
            index += length;
            continue;
        }
        kept.push(match &tokens[index] {
            TokenTree::Group(group) => {
                let inner = without_tests(group.stream(), test_modules);
                TokenTree::Group(proc_macro2::Group::new(group.delimiter(), inner))
            }
            token => token.clone(),
        });
        index += 1;
    }
    kept.into_iter().collect()
}

fn is_test_only(attribute: &str) -> bool {
    let text: String = attribute.split_whitespace().collect();
    text == "test" || text == "cfg(test)" || text.starts_with("cfg(all(test,")
}

/// Returns the index behind the item that begins at `start`: it ends with a semicolon or with
/// braces. The braces of a `use` do not end it.
fn item_end(tokens: &[TokenTree], start: usize) -> usize {
    let is_use = tokens[start..]
        .iter()
        .take_while(|token| !matches!(token, TokenTree::Punct(punct) if punct.as_char() == ';'))
        .any(|token| matches!(token, TokenTree::Ident(ident) if ident == "use"));
    let ends = |token: &TokenTree| match token {
        TokenTree::Punct(punct) => punct.as_char() == ';',
        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace && !is_use,
        _ => false,
    };
    tokens[start..]
        .iter()
        .position(ends)
        .map_or(tokens.len(), |length| start + length + 1)
}

/// Returns the name of a module that is declared with `mod NAME;`.
fn module_name(item: &[TokenTree]) -> Option<String> {
    let [
        ..,
        TokenTree::Ident(word),
        TokenTree::Ident(name),
        TokenTree::Punct(end),
    ] = item
    else {
        return None;
    };
    (word == "mod" && end.as_char() == ';').then(|| name.to_string())
}

fn module_of(path: &Path) -> String {
    let path = path.with_extension("");
    let path = match path.parent() {
        Some(parent) if path.ends_with("mod") => parent,
        _ => &path,
    };
    let names: Vec<_> = path.iter().map(|name| name.to_string_lossy()).collect();
    names.join("::")
}

fn find_files(directory: &Path, paths: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            find_files(&path, paths);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            paths.push(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_named_after_their_files() {
        for (path, module) in [
            ("lib.rs", ROOT),
            ("report.rs", "report"),
            ("machine/mod.rs", "machine"),
            ("machine/paths.rs", "machine::paths"),
        ] {
            assert_eq!(module_of(Path::new(path)), module);
        }
    }

    #[test]
    fn code_of_tests_is_left_out() {
        let text = "
            #[cfg(test)]
            use crate::{one, two};
            fn kept() { call(); #[cfg(test)] use crate::three; }
            #[cfg(test)]
            #[allow(unused)]
            mod tests { fn left_out() {} }
            #[test]
            fn left_out() {}
            #[derive(Debug)]
            struct Kept;
        ";
        let source = Source::parse(Path::new("a.rs"), text);
        assert_eq!(
            source.tokens.to_string(),
            "fn kept () { call () ; } struct Kept ;"
        );
    }

    #[test]
    fn files_of_test_modules_are_left_out() {
        let sources = without_test_modules(vec![
            Source::parse(Path::new("a/mod.rs"), "mod b; #[cfg(test)] mod tests;"),
            Source::parse(Path::new("a/b.rs"), ""),
            Source::parse(Path::new("a/tests.rs"), ""),
            Source::parse(Path::new("a/tests/c.rs"), ""),
        ]);
        let modules: Vec<_> = sources.iter().map(|source| &*source.module).collect();
        assert_eq!(modules, ["a", "a::b"]);
    }
}
