//! Parsed options, in groups.

mod clap_matches;
pub mod machine;

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ArgMatches;
use nspawn_common::cli::{sources, values};
use nspawn_common::machine::paths::CONFIG_ROOT;
use nspawn_common::shell;

use crate::cli;

use clap_matches::{optional, parsed_list, required};
pub use machine::MachineOptions;

/// Time by which a service may exceed its own time limits: it waits for other services, and is
/// removed if it fails.
const SERVICE_MARGIN: Duration = Duration::from_secs(120);

/// Options of a call, in groups.
#[derive(Clone, Debug)]
pub struct Options {
    /// Request to print the configuration for GitLab Runner's config stage instead of creating a
    /// machine.
    pub config: bool,
    /// Number of standby machines of each image.
    pub standby: Option<usize>,
    /// Name of the machine.
    pub name: Option<OsString>,
    /// Permission to replace a machine of the same name that is in use.
    pub replace: bool,
    /// Images that are named as arguments.
    pub images: Vec<String>,
    /// Image by `--image` or as the argument, which takes precedence over the job's.
    pub image: Option<String>,
    pub default_image: Option<String>,
    pub machine: MachineOptions,
    pub policy: JobPolicy,
    pub service_defaults: ServiceDefaults,
    pub output: OutputOptions,
}

/// Policy of the administrator for GitLab jobs.
#[derive(Clone, Debug)]
pub struct JobPolicy {
    /// Patterns for names of images of jobs, with the image to use instead.
    pub image_map: Vec<(OsString, String)>,
    /// Patterns for names of allowed images; if there are none, all images are allowed.
    pub allowed_images: Vec<OsString>,
    /// Patterns for names of allowed images of services; if there are none, all are allowed.
    pub allowed_services: Vec<OsString>,
    /// Time limit for a service to become ready.
    pub service_timeout: Duration,
    /// Maximum number of services of a job.
    pub max_services: u8,
    /// Maximum size of a project's cache, in bytes; `None` for no caches.
    pub cache_size: Option<u64>,
    /// Path of the program for artifacts and caches, or `no`.
    pub gitlab_runner: Option<OsString>,
}

/// Defaults for services of the image, for what a job does not specify.
#[derive(Clone, Debug)]
pub struct ServiceDefaults {
    pub entrypoint: Vec<OsString>,
    pub command: Vec<OsString>,
    pub user: Option<String>,
    pub directory: Option<OsString>,
    /// TCP port on which a service is ready.
    pub port: Option<u16>,
}

/// Options for what is printed.
#[derive(Clone, Debug)]
pub struct OutputOptions {
    pub dry_run: bool,
    pub json: bool,
    pub verbose: bool,
}

impl Options {
    /// Returns the time limit for a service to be created, as any machine, and to become ready.
    pub fn service_limit(&self) -> Duration {
        self.machine.timeout.saturating_mul(2) + self.policy.service_timeout + SERVICE_MARGIN
    }
}

/// Parses the options, and returns them with the name of their image.
///
/// The image may have an argument file of its own, so `image_of` finds the name from the other
/// options. Returns `None` if help was requested and printed.
pub fn parse(
    arguments: &[OsString],
    image_of: impl Fn(&Options) -> Result<String>,
) -> Result<Option<(Options, String)>> {
    let common_file = Path::new(CONFIG_ROOT).join("prepare.args");
    let Some(matches) = sources::parse(&cli::command(), &[&common_file], arguments)? else {
        return Ok(None);
    };
    let options = Options::from_matches(&matches)?;
    if options.config {
        return Ok(Some((options, String::new())));
    }
    let image = image_of(&options)?;
    let directory = Path::new(CONFIG_ROOT).join("images");
    let image_file = directory.join(format!("{image}.args"));
    let files = [&*common_file, &*image_file];
    let Some(matches) = sources::parse(&cli::command(), &files, arguments)? else {
        return Ok(None);
    };
    Ok(Some((Options::from_matches(&matches)?, image)))
}

impl Options {
    fn from_matches(matches: &ArgMatches) -> Result<Self> {
        let images: Vec<String> = matches
            .get_many("IMAGE")
            .into_iter()
            .flatten()
            .cloned()
            .collect();
        let standby: Option<u16> = optional(matches, "standby");
        if images.len() > 1 && standby.is_none() {
            bail!(
                "can't make one machine of several images: {}; only --standby takes several",
                images.join(" ")
            );
        }
        Ok(Self {
            config: values::is_set(matches, "config"),
            standby: standby.map(usize::from),
            name: optional(matches, "name"),
            replace: values::is_set(matches, "replace"),
            image: images.first().cloned().or(optional(matches, "image")),
            images,
            default_image: optional(matches, "default-image"),
            machine: MachineOptions::from_matches(matches)?,
            policy: JobPolicy::from_matches(matches)?,
            service_defaults: ServiceDefaults::from_matches(matches)?,
            output: OutputOptions::from_matches(matches),
        })
    }
}

impl JobPolicy {
    fn from_matches(matches: &ArgMatches) -> Result<Self> {
        Ok(Self {
            image_map: parsed_list(matches, "map-image", parse_mapping)?,
            allowed_images: values::list(matches, "allow-image"),
            allowed_services: values::list(matches, "allow-service"),
            service_timeout: required(matches, "service-timeout")?,
            max_services: required(matches, "max-services")?,
            cache_size: required(matches, "cache-size")?,
            gitlab_runner: optional(matches, "gitlab-runner"),
        })
    }
}

impl ServiceDefaults {
    fn from_matches(matches: &ArgMatches) -> Result<Self> {
        Ok(Self {
            entrypoint: shell_words(matches, "service-entrypoint")?,
            command: shell_words(matches, "service-command")?,
            user: optional(matches, "service-user"),
            directory: optional(matches, "service-working-directory"),
            port: optional(matches, "service-port"),
        })
    }
}

impl OutputOptions {
    fn from_matches(matches: &ArgMatches) -> Self {
        Self {
            dry_run: values::is_set(matches, "dry-run"),
            json: values::is_set(matches, "json"),
            verbose: values::is_set(matches, "verbose"),
        }
    }
}

fn shell_words(matches: &ArgMatches, option: &str) -> Result<Vec<OsString>> {
    let Some(text) = optional::<String>(matches, option) else {
        return Ok(Vec::new());
    };
    shell::split(text.as_ref()).with_context(|| format!("--{option}={text}"))
}

// A pattern may contain a '=', but the name of an image does not.
fn parse_mapping(entry: OsString) -> Result<(OsString, String)> {
    match entry.to_str().and_then(|text| text.rsplit_once('=')) {
        Some((glob, image)) if !glob.is_empty() && !image.is_empty() => {
            Ok((glob.into(), image.to_owned()))
        }
        _ => bail!("can't use --map-image={entry:?}: it needs GLOB=IMAGE"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<Options> {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        parse(&words, |options| {
            Ok(options.image.clone().unwrap_or_default())
        })
        .map(|both| both.unwrap().0)
    }

    #[test]
    fn argument_and_option_name_the_image() {
        assert_eq!(parsed(&["bookworm"]).unwrap().image.unwrap(), "bookworm");
        assert_eq!(
            parsed(&["--image=trixie"]).unwrap().image.unwrap(),
            "trixie"
        );
        assert_eq!(
            parsed(&[]).unwrap().machine.timeout,
            Duration::from_secs(90)
        );
    }

    #[test]
    fn bad_values_are_errors() {
        for words in [
            &["x", "--mask=a b.service"][..],
            &["x", "--mask=cron"],
            &["x", "--boot-target="],
            &["x", "--mask=a.service", "--init=stub"],
            &["x", "--timeout=0"],
            &["x", "-p", "MemoryMax"],
            &["x", "-p", "Slice=x.slice"],
            &["x", "-E", "=1"],
            &["x", "--rlimit=core"],
            &["x", "--rlimit=RLIMIT_CORE=0"],
            &["x", "--rlimit=CORE="],
            &["x", "--allow-address-family=ALG"],
            &["x", "y"],
            &["--nonsense"],
        ] {
            assert!(parsed(words).is_err(), "{words:?}");
        }
    }
}
