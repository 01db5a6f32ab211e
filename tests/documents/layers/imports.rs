//! The modules that a module imports, found by the paths in its code.
//!
//! A path counts wherever it stands: in a `use`, or inline in an expression or a type. It may begin
//! with `crate`, `self` or `super`, with a module that is declared in the file, or with a module
//! that a `use` of the file brings in.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

use crate::sources::{ROOT, Source, join};

/// Imports of each module of a crate. Only modules with files of their own are listed.
pub type Imports = BTreeMap<String, BTreeSet<String>>;

/// Finds the imports of all modules of a crate.
pub fn of_sources(sources: &[Source]) -> Imports {
    let modules: BTreeSet<String> = sources.iter().map(|source| source.module.clone()).collect();
    sources
        .iter()
        .map(|source| (source.module.clone(), of_source(source, &modules)))
        .collect()
}

fn of_source(source: &Source, modules: &BTreeSet<String>) -> BTreeSet<String> {
    let place = match &*source.module {
        ROOT => Vec::new(),
        module => module.split("::").map(str::to_owned).collect(),
    };
    let mut finder = Finder {
        modules,
        names: child_modules(&source.module, modules),
        imports: BTreeSet::new(),
    };
    // A name may be used above the `use` that brings it in.
    for only_uses in [true, false] {
        finder.walk(source.tokens.clone(), &place, only_uses);
    }
    finder.imports.remove(&source.module);
    finder.imports
}

/// Returns the modules directly below `module`, by their names.
fn child_modules(module: &str, modules: &BTreeSet<String>) -> BTreeMap<String, String> {
    let parent = if module == ROOT { "" } else { module };
    let name_of = |child: &String| {
        let name = child.rsplit("::").next().unwrap_or_default().to_owned();
        (join(parent, &name) == *child && child != ROOT).then(|| (name, child.clone()))
    };
    modules.iter().filter_map(name_of).collect()
}

struct Finder<'a> {
    modules: &'a BTreeSet<String>,
    /// Names that stand for modules of the crate in this file.
    names: BTreeMap<String, String>,
    imports: BTreeSet<String>,
}

impl Finder<'_> {
    /// Walks through the code of the module at `place`, which may be declared inside its file.
    fn walk(&mut self, stream: TokenStream, place: &[String], only_uses: bool) {
        let tokens: Vec<TokenTree> = stream.into_iter().collect();
        let mut index = 0;
        while index < tokens.len() {
            match &tokens[index] {
                TokenTree::Ident(word) if word == "use" => {
                    let length = tokens[index..].iter().take_while(|token| !is(token, ';'));
                    let end = index + length.count();
                    self.read_use(&tokens[index + 1..end], &[], place);
                    index = end;
                }
                TokenTree::Ident(word) if word == "mod" => {
                    index += self.walk_inline_module(&tokens[index..], place, only_uses);
                }
                TokenTree::Ident(_) => {
                    let (path, length) = read_path(&tokens[index..]);
                    if !only_uses && path.len() > 1 {
                        self.add(&path, place);
                    }
                    index += length;
                }
                TokenTree::Group(group) => {
                    if !is_visibility(group) {
                        self.walk(group.stream(), place, only_uses);
                    }
                    index += 1;
                }
                _ => index += 1,
            }
        }
    }

    /// Walks through `mod NAME { … }`. Returns the number of tokens that it takes.
    fn walk_inline_module(
        &mut self,
        tokens: &[TokenTree],
        place: &[String],
        only_uses: bool,
    ) -> usize {
        let (Some(TokenTree::Ident(name)), Some(TokenTree::Group(group))) =
            (tokens.get(1), tokens.get(2))
        else {
            return 1;
        };
        let inner = [place, &[name.to_string()]].concat();
        self.walk(group.stream(), &inner, only_uses);
        3
    }

    /// Reads a `use`, or a part of one in braces, whose path begins with `prefix`.
    fn read_use(&mut self, tokens: &[TokenTree], prefix: &[String], place: &[String]) {
        for part in tokens.split(|token| is(token, ',')) {
            let (path, length) = read_path(part);
            let is_self = path == ["self"] && !prefix.is_empty();
            let path = if is_self {
                prefix.to_vec()
            } else {
                [prefix, &path].concat()
            };
            match part.get(length..) {
                Some([TokenTree::Group(group), ..]) => {
                    let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                    self.read_use(&inner, &path, place);
                }
                Some([TokenTree::Ident(_), TokenTree::Ident(name), ..]) => {
                    self.add_name(&path, &name.to_string(), place);
                }
                _ => {
                    let name = path.last().cloned().unwrap_or_default();
                    self.add_name(&path, &name, place);
                }
            }
        }
    }

    fn add_name(&mut self, path: &[String], name: &str, place: &[String]) {
        self.add(path, place);
        if let Some(absolute) = self.absolute(path, place) {
            let module = absolute.join("::");
            if self.modules.contains(&module) {
                self.names.insert(name.to_owned(), module);
            }
        }
    }

    /// Adds the module that `path` leads into, if it is one of the crate.
    fn add(&mut self, path: &[String], place: &[String]) {
        let Some(mut absolute) = self.absolute(path, place) else {
            return;
        };
        while !absolute.is_empty() && !self.modules.contains(&absolute.join("::")) {
            absolute.pop();
        }
        self.imports.insert(if absolute.is_empty() {
            ROOT.to_owned()
        } else {
            absolute.join("::")
        });
    }

    /// Returns `path` from the crate's root on, or `None` if it leads into another crate.
    fn absolute(&self, path: &[String], place: &[String]) -> Option<Vec<String>> {
        let (first, mut rest) = path.split_first()?;
        let mut absolute = match &**first {
            "crate" => Vec::new(),
            "self" => place.to_vec(),
            "super" => place[..place.len().saturating_sub(1)].to_vec(),
            name => self
                .names
                .get(name)?
                .split("::")
                .map(str::to_owned)
                .collect(),
        };
        while rest.first().is_some_and(|name| name == "super") {
            absolute.pop();
            rest = &rest[1..];
        }
        absolute.extend_from_slice(rest);
        Some(absolute)
    }
}

/// Reads a path such as `a::b::c` from the first of the tokens on. Returns its names, and the
/// number of tokens that it takes, a last `::` included.
fn read_path(tokens: &[TokenTree]) -> (Vec<String>, usize) {
    let mut names = Vec::new();
    let mut index = 0;
    while let Some(TokenTree::Ident(name)) = tokens.get(index) {
        names.push(name.to_string());
        index += 1;
        match tokens.get(index..index + 2) {
            Some([first, second]) if is(first, ':') && is(second, ':') => index += 2,
            _ => break,
        }
    }
    (names, index.max(1).min(tokens.len()))
}

/// Returns whether the parentheses are those of `pub(in …)`, which names a module of its own
/// ancestors and imports nothing.
fn is_visibility(group: &proc_macro2::Group) -> bool {
    let first = group.stream().into_iter().next();
    group.delimiter() == Delimiter::Parenthesis
        && matches!(first, Some(TokenTree::Ident(word)) if word == "in")
}

fn is(token: &TokenTree, wanted: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == wanted)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[track_caller]
    fn imports(path: &str, text: &str) -> Vec<String> {
        let files = ["lib.rs", "a.rs", "b/mod.rs", "b/c.rs", "b/d.rs"];
        let sources: Vec<Source> = files
            .iter()
            .map(|file| Source::parse(Path::new(file), if *file == path { text } else { "" }))
            .collect();
        let module = &sources[files.iter().position(|file| *file == path).unwrap()].module;
        of_sources(&sources)[module].iter().cloned().collect()
    }

    #[test]
    fn grouped_imports_are_found() {
        assert_eq!(imports("a.rs", "use crate::{b, b::c};"), ["b", "b::c"]);
        assert_eq!(
            imports("a.rs", "use crate::b::{self, c::{X, Y as Z}, d};"),
            ["b", "b::c", "b::d"]
        );
    }

    #[test]
    fn relative_imports_are_found() {
        assert_eq!(imports("b/c.rs", "use super::d;"), ["b::d"]);
        assert_eq!(imports("b/c.rs", "use super::Thing;"), ["b"]);
        assert_eq!(imports("b/c.rs", "use super::super::a::f;"), ["a"]);
        assert_eq!(imports("b/mod.rs", "use self::c::f;"), ["b::c"]);
        assert_eq!(imports("b/c.rs", "mod inner { use super::f; }"), [""; 0]);
    }

    #[test]
    fn inline_paths_are_found() {
        assert_eq!(imports("a.rs", "fn f(x: &crate::b::c::X) {}"), ["b::c"]);
        assert_eq!(
            imports("a.rs", "fn f() { g!(h(super::b::d::X)) }"),
            ["b::d"]
        );
        assert_eq!(
            imports("a.rs", "fn f() { b::d::g() } use crate::b;"),
            ["b", "b::d"]
        );
        assert_eq!(imports("b/mod.rs", "mod c; fn f() { c::g() }"), ["b::c"]);
        assert_eq!(
            imports("a.rs", "use crate::b as e; type X = e::c::X;"),
            ["b", "b::c"]
        );
    }

    #[test]
    fn items_of_the_root_are_imports_of_the_root() {
        assert_eq!(imports("a.rs", "use crate::PROGRAM;"), [ROOT]);
        assert_eq!(imports("a.rs", "use crate::*;"), [ROOT]);
    }

    #[test]
    fn other_text_is_no_import() {
        let text = r#"
            //! [`crate::b`]
            use std::b::c;
            pub(in crate::b) fn f(&self) { self.b(); "crate::b" }
            pub(super) fn g() { /* crate::b */ nspawn_common::b::c() }
        "#;
        assert_eq!(imports("a.rs", text), [""; 0]);
    }
}
