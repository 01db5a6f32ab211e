//! Commands `artifacts-uploader` and `artifacts-downloader`.
//!
//! The scripts of jobs call them in the directory of the project.

use std::io::Cursor;
use std::path::Path;

use anyhow::{Result, bail};

use super::client::Client;
use super::options::Options;
use super::{file_patterns, zip_archive};
use crate::multipart::FormFile;

/// Uploads the artifacts of a job (commands/helpers/artifacts_uploader.go).
pub fn upload(words: &[String]) -> Result<()> {
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
    let options = Options::parse(words, &valued, &["untracked", "verbose"])?;
    let client = Client::new(&options.get("url")?, &options.get("token")?)?;
    let files = file_patterns::from_options(&options)?;
    if files.is_empty() {
        eprintln!("ERROR: No files to upload");
        return Ok(());
    }
    let archive = zip_archive::write(Cursor::new(Vec::new()), Path::new("."), &files)?;
    let name = options.value("name", "artifacts".to_owned())?;
    let (content_type, body) = FormFile {
        name: format!("{name}.zip"),
        content: archive.into_inner(),
    }
    .encode();
    let target = format!(
        "jobs/{}/artifacts?artifact_format={}&artifact_type={}",
        options.get("id")?,
        options.value("artifact-format", String::new())?,
        options.value("artifact-type", String::new())?,
    );
    let response = client.send("POST", &target, &content_type, body)?;
    match response.status().as_u16() {
        201 => println!(
            "Uploading artifacts to coordinator... {} files, ok",
            files.len()
        ),
        status => bail!("Uploading artifacts to coordinator... {status}"),
    }
    Ok(())
}

/// Downloads the artifacts of a job (commands/helpers/artifacts_downloader.go).
pub fn download(words: &[String]) -> Result<()> {
    let options = Options::parse(
        words,
        &["url", "token", "id"],
        &["direct-download", "verbose"],
    )?;
    let client = Client::new(&options.get("url")?, &options.get("token")?)?;
    let response = client.get(&format!("jobs/{}/artifacts", options.get("id")?))?;
    match response.status().as_u16() {
        200 => {}
        status => bail!("Downloading artifacts from coordinator... {status}"),
    }
    let count = zip_archive::extract(Cursor::new(response.into_body()), Path::new("."))?;
    println!("Downloading artifacts from coordinator... {count} files, ok");
    Ok(())
}
