//! Commands `cache-archiver` and `cache-extractor`.
//!
//! The scripts of jobs call them in the directory of the project.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::options::Options;
use super::{file_patterns, zip_archive};

/// Archives files in a local cache (commands/helpers/cache_archiver.go).
pub fn archive(words: &[String]) -> Result<()> {
    let valued = [
        "file",
        "path",
        "exclude",
        "timeout",
        "url",
        "compression-level",
    ];
    let options = Options::parse(words, &valued, &["untracked", "verbose"])?;
    let file = PathBuf::from(options.get("file")?);
    let files = file_patterns::from_options(&options)?;
    let directory = file
        .parent()
        .with_context(|| format!("{} has no directory", file.display()))?;
    fs::create_dir_all(directory)
        .with_context(|| format!("can't create {}", directory.display()))?;
    // The archive gets its name when it is complete, so that no other job reads a half of it.
    let temporary = directory.join(format!("archive_{}", std::process::id()));
    let output =
        File::create(&temporary).with_context(|| format!("can't write {}", temporary.display()))?;
    zip_archive::write(output, Path::new("."), &files)?;
    fs::rename(&temporary, &file)?;
    println!(
        "{}: {} files; the archive is stored locally only",
        file.display(),
        files.len()
    );
    Ok(())
}

/// Extracts files from a local cache (commands/helpers/cache_extractor.go).
pub fn extract(words: &[String]) -> Result<()> {
    let options = Options::parse(words, &["file", "timeout", "url"], &["verbose"])?;
    let file = options.get("file")?;
    let input = File::open(&file).with_context(|| format!("can't open {file}"))?;
    let count = zip_archive::extract(input, Path::new("."))?;
    println!("{file}: {count} files");
    Ok(())
}
