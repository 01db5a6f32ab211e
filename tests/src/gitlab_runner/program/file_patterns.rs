//! Patterns for files of artifacts and caches.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::options::Options;

/// Returns the files that the options `--path`, `--untracked` and `--exclude` select.
pub fn from_options(options: &Options) -> Result<BTreeSet<PathBuf>> {
    let root = Path::new(".");
    let mut files = find(root, &options.all("path"), options.is_given("untracked"))?;
    let excluded = find(root, &options.all("exclude"), false)?;
    files.retain(|file| !excluded.contains(file));
    Ok(files)
}

/// Returns the files and symbolic links below `root` that `patterns` select.
///
/// A pattern that matches a directory selects everything in it.
///
/// `untracked` adds the files that git does not track.
fn find(root: &Path, patterns: &[String], untracked: bool) -> Result<BTreeSet<PathBuf>> {
    let mut all = BTreeSet::new();
    walk(root, Path::new(""), &mut all)?;
    let is_match = |path: &Path| {
        patterns.iter().any(|pattern| {
            let pattern: Vec<&str> = pattern
                .trim_matches('/')
                .split('/')
                .filter(|part| *part != ".")
                .collect();
            path.ancestors().any(|part| matches(&pattern, part))
        })
    };
    let mut found: BTreeSet<PathBuf> = all.into_iter().filter(|path| is_match(path)).collect();
    if untracked {
        found.extend(untracked_files(root)?);
    }
    Ok(found)
}

fn walk(root: &Path, below: &Path, all: &mut BTreeSet<PathBuf>) -> Result<()> {
    let directory = root.join(below);
    for entry in
        fs::read_dir(&directory).with_context(|| format!("can't read {}", directory.display()))?
    {
        let entry = entry?;
        let path = below.join(entry.file_name());
        match entry.file_type()? {
            kind if kind.is_dir() && path == Path::new(".git") => {}
            kind if kind.is_dir() => walk(root, &path, all)?,
            kind if kind.is_file() || kind.is_symlink() => drop(all.insert(path)),
            _ => {}
        }
    }
    Ok(())
}

fn untracked_files(root: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("git")
        .args(["ls-files", "--others", "-z"])
        .current_dir(root)
        .output()?;
    if !output.status.success() {
        bail!(
            "git ls-files: {}",
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    let names = output
        .stdout
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    Ok(names
        .map(|name| PathBuf::from(std::ffi::OsStr::from_bytes(name)))
        .collect())
}

/// Returns whether a pattern matches a path, part by part.
///
/// The part `**` matches any number of parts.
fn matches(pattern: &[&str], path: &Path) -> bool {
    let parts: Vec<_> = path
        .iter()
        .map(|part| part.to_string_lossy().into_owned())
        .collect();
    match_parts(pattern, &parts)
}

fn match_parts(pattern: &[&str], parts: &[String]) -> bool {
    match (pattern, parts) {
        ([], rest) => rest.is_empty(),
        (["**", more @ ..], rest) => {
            (0..=rest.len()).any(|count| match_parts(more, &rest[count..]))
        }
        ([first, more @ ..], [part, rest @ ..]) => {
            match_part(first, part) && match_parts(more, rest)
        }
        _ => false,
    }
}

/// Returns whether a part of a pattern matches a part of a path. `*` matches any text.
fn match_part(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, after)) => text.strip_prefix(before).is_some_and(|rest| {
            rest.char_indices()
                .map(|(index, _)| index)
                .chain([rest.len()])
                .any(|index| match_part(after, &rest[index..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_files_and_everything_in_directories() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        for path in ["a", "b/c.o", "b/d/e.o", ".git/config"] {
            fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
            fs::write(root.join(path), path).unwrap();
        }
        std::os::unix::fs::symlink("/nowhere", root.join("link")).unwrap();
        let found = |pattern: &str| {
            let found = find(root, &[pattern.to_owned()], false).unwrap();
            found
                .iter()
                .map(|path| path.display().to_string())
                .collect::<Vec<_>>()
                .join(" ")
        };
        for (pattern, files) in [
            ("a", "a"),
            ("b", "b/c.o b/d/e.o"),
            ("./b/", "b/c.o b/d/e.o"),
            ("b/*.o", "b/c.o"),
            ("**/*.o", "b/c.o b/d/e.o"),
            ("li*k", "link"),
            ("*", "a b/c.o b/d/e.o link"),
            ("c.o", ""),
            ("../a", ""),
        ] {
            assert_eq!(found(pattern), files, "{pattern}");
        }
    }
}
