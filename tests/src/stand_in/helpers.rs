//! What the scripts of jobs call, in the directory of the project.

use std::fs::{self, File};
use std::io::Cursor;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::flags::Flags;
use super::server::Server;
use super::{archive, files};
use crate::http::Request;

const BOUNDARY: &str = "nspawn-ci-gitlab-runner-stand-in";

/// `artifacts-uploader` (commands/helpers/artifacts_uploader.go)
pub fn upload_artifacts(words: &[String]) -> Result<()> {
    let valued = [
        "url",
        "token",
        "id",
        "path",
        "exclude",
        "name",
        "expire-in",
        "artifact-format",
        "artifact-type",
        "compression-level",
    ];
    let flags = Flags::parse(words, &valued, &["untracked", "verbose"])?;
    let server = Server::new(&flags.get("url")?, &flags.get("token")?)?;
    let files = files_of(&flags)?;
    if files.is_empty() {
        eprintln!("ERROR: No files to upload");
        return Ok(());
    }
    let archive = archive::write(Cursor::new(Vec::new()), Path::new("."), &files)?.into_inner();
    let (kind, format) = (
        flags.value("artifact-type", String::new())?,
        flags.value("artifact-format", String::new())?,
    );
    let target = format!(
        "jobs/{}/artifacts?artifact_format={format}&artifact_type={kind}",
        flags.get("id")?
    );
    let name = flags.value("name", "artifacts".to_owned())?;
    let form = form(&format!("{name}.zip"), &archive);
    let response = server.ask(
        "POST",
        &target,
        &format!("multipart/form-data; boundary={BOUNDARY}"),
        form,
    )?;
    match response.status {
        201 => println!(
            "Uploading artifacts to coordinator... {} files, ok",
            files.len()
        ),
        status => bail!("Uploading artifacts to coordinator... {status}"),
    }
    Ok(())
}

fn form(name: &str, content: &[u8]) -> Vec<u8> {
    let head = format!(
        "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\
         Content-Type: application/octet-stream\r\n\r\n"
    );
    [
        head.as_bytes(),
        content,
        format!("\r\n--{BOUNDARY}--\r\n").as_bytes(),
    ]
    .concat()
}

/// `artifacts-downloader` (commands/helpers/artifacts_downloader.go)
pub fn download_artifacts(words: &[String]) -> Result<()> {
    let flags = Flags::parse(
        words,
        &["url", "token", "id"],
        &["direct-download", "verbose"],
    )?;
    let server = Server::new(&flags.get("url")?, &flags.get("token")?)?;
    let response = server.send(Request::new(
        "GET",
        &format!("/api/v4/jobs/{}/artifacts", flags.get("id")?),
    ))?;
    if response.status != 200 {
        bail!(
            "Downloading artifacts from coordinator... {}",
            response.status
        );
    }
    let count = archive::extract(Cursor::new(response.body), Path::new("."))?;
    println!("Downloading artifacts from coordinator... {count} files, ok");
    Ok(())
}

/// `cache-archiver` (commands/helpers/cache_archiver.go)
pub fn archive_cache(words: &[String]) -> Result<()> {
    let valued = [
        "file",
        "path",
        "exclude",
        "timeout",
        "url",
        "compression-level",
    ];
    let flags = Flags::parse(words, &valued, &["untracked", "verbose"])?;
    let (file, files) = (PathBuf::from(flags.get("file")?), files_of(&flags)?);
    let directory = file
        .parent()
        .with_context(|| format!("{} has no directory", file.display()))?;
    fs::create_dir_all(directory).with_context(|| format!("can't make {}", directory.display()))?;
    // Under another name at first, so that nobody reads a half of it.
    let new = directory.join(format!("archive_{}", std::process::id()));
    archive::write(
        File::create(&new).with_context(|| format!("can't write {}", new.display()))?,
        Path::new("."),
        &files,
    )?;
    fs::rename(&new, &file)?;
    println!(
        "{}: {} files; it is stored locally alone",
        file.display(),
        files.len()
    );
    Ok(())
}

/// `cache-extractor` (commands/helpers/cache_extractor.go)
pub fn extract_cache(words: &[String]) -> Result<()> {
    let flags = Flags::parse(words, &["file", "timeout", "url"], &["verbose"])?;
    let file = flags.get("file")?;
    let count = archive::extract(
        File::open(&file).with_context(|| format!("can't open {file}"))?,
        Path::new("."),
    )?;
    println!("{file}: {count} files");
    Ok(())
}

fn files_of(flags: &Flags) -> Result<std::collections::BTreeSet<PathBuf>> {
    let mut files = files::find(
        Path::new("."),
        &flags.all("path"),
        flags.is_given("untracked"),
    )?;
    let excluded = files::find(Path::new("."), &flags.all("exclude"), false)?;
    files.retain(|file| !excluded.contains(file));
    Ok(files)
}
