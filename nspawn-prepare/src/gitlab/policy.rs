//! What a GitLab job may ask for: less than the administrator gives, and nothing else.

use std::ffi::{CString, OsString};
use std::os::unix::ffi::OsStrExt;

use anyhow::{Error, Result, bail};
use nix::libc;
use nspawn_common::command;
use nspawn_common::config::layer::Layer;
use nspawn_common::config::network::Network;
use nspawn_common::config::private_users::PrivateUsers;
use nspawn_common::error;
use nspawn_common::error::Failure;
use nspawn_common::gitlab::{Job, Service};
use nspawn_common::image::lookup;
use nspawn_common::image::lookup::Image;

use crate::commands::service;
use crate::create::spec::ForJob;
use crate::gitlab::cache;
use crate::gitlab::runner_binary;
use crate::layer::LayerSize;
use crate::limits;
use crate::options::Options;
use crate::services::network;
use crate::services::spawn::Order;

/// Refuses an image that is not among the `allowed` ones; none means all.
pub fn check_image(allowed: &[OsString], image: &Image) -> Result<()> {
    if allowed.is_empty() || allowed.iter().any(|glob| matches(glob, &image.name)) {
        return Ok(());
    }
    let allowed: Vec<_> = allowed.iter().map(|glob| glob.to_string_lossy()).collect();
    bail!(Failure::job(format!(
        "the image {} is not allowed on this runner; allowed are {}",
        image.name,
        allowed.join(", ")
    )))
}

/// What a job asks of its machine, whose `options` are those of `argv`.
pub fn of_job(job: &Job, options: &Options, argv: &[OsString]) -> Result<ForJob> {
    if !job.services.is_empty() {
        network::check(&options.network)?;
    }
    let (count, most) = (job.services.len(), options.max_services);
    if count > most.into() {
        bail!(Failure::job(format!(
            "the job has {count} services, and this runner gives {most} at most"
        )));
    }
    // Before any is made.
    for service in &job.services {
        check_image(
            &options.allowed_services,
            &image_of_service(options, service)?,
        )?;
    }
    let program = command::current_program()?;
    let order = |(number, service): (usize, &Service)| Order {
        image: service.image.clone(),
        command: [
            &[
                program.clone().into(),
                service::OPTION.into(),
                number.to_string().into(),
            ],
            argv,
        ]
        .concat(),
    };
    // A cache needs users of the machine's own, as its owners.
    let cache = options
        .cache_size
        .filter(|_| options.private_users != PrivateUsers::No)
        .and_then(|_| job.project());
    Ok(ForJob {
        user: job.user.clone(),
        entrypoint: job.entrypoint.iter().map(OsString::from).collect(),
        cache: cache.map(|project| cache::file(&project)),
        services: (1..).zip(&job.services).map(order).collect(),
        runner: runner_binary::caller(),
    })
}

/// The image that the service has.
pub fn image_of_service(options: &Options, service: &Service) -> Result<Image> {
    if service.image.is_empty() {
        bail!(Failure::job(
            "a service of the job names no image; add name: to it".to_owned()
        ));
    }
    let error = |error: Error| match error::is_job_fault(&error) {
        true => Failure::job(format!(
            "the service {} can't be had: {error:#}",
            service.image
        ))
        .into(),
        false => error,
    };
    lookup::find(&mapped(&options.image_map, &service.image)).map_err(error)
}

/// The image for a job that asks for `image`: that of the first pattern which matches.
pub fn mapped(map: &[(OsString, String)], image: &str) -> String {
    let found = map.iter().find(|(glob, _)| matches(glob, image));
    found.map_or(image, |(_, image)| image).to_owned()
}

fn matches(glob: &OsString, name: &str) -> bool {
    let (Ok(glob), Ok(name)) = (CString::new(glob.as_bytes()), CString::new(name)) else {
        return false;
    };
    // SAFETY: fnmatch(3) reads two strings that end with NUL.
    unsafe { libc::fnmatch(glob.as_ptr(), name.as_ptr(), 0) == 0 }
}

/// Lowers limits as the job's `NSPAWN_JOB_…` variables say.
pub fn grant(options: &mut Options, variable: impl Fn(&str) -> Option<String>) -> Result<()> {
    let properties = limits::of_job(&options.properties, &variable)?;
    options.properties.extend(properties);
    // Some layers can't have a size: see layer::choose().
    let has_size =
        options.layer_size != LayerSize::Infinity || options.private_users != PrivateUsers::No;
    let has_size = has_size && options.layer != Layer::Snapshot;
    if let Some(asked) = variable("NSPAWN_JOB_LAYER_SIZE").filter(|_| has_size) {
        options.layer_size = smaller(options.layer, options.layer_size, &asked)?;
    }
    match variable("NSPAWN_JOB_NETWORK").as_deref() {
        None => {}
        Some("none") => options.network = Network::None,
        Some(asked) => bail!(Failure::job(format!(
            "the job's NSPAWN_JOB_NETWORK={asked} can only be none"
        ))),
    }
    Ok(())
}

fn smaller(layer: Layer, most: LayerSize, asked: &str) -> Result<LayerSize> {
    let refuse =
        |why: String| Failure::job(format!("the job's NSPAWN_JOB_LAYER_SIZE={asked} {why}"));
    let size =
        LayerSize::parse(asked).map_err(|error| refuse(format!("can't be had: {error:#}")))?;
    match (size.bytes(layer)?, most.bytes(layer)?) {
        (Some(asked), Some(most)) if asked > most => {
            bail!(refuse(format!("is more than this runner gives, {most}")))
        }
        (None, Some(most)) => bail!(refuse(format!("is more than this runner gives, {most}"))),
        (asked, _) => Ok(asked.map_or(LayerSize::Infinity, LayerSize::Bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(name: &str) -> Image {
        Image {
            name: name.to_owned(),
            path: "/x".into(),
        }
    }

    #[test]
    fn images_are_allowed_by_globs() {
        let allowed = ["debian-*", "trixie"].map(OsString::from);
        for name in ["debian-12", "trixie"] {
            check_image(&allowed, &image(name)).unwrap();
        }
        for name in ["debian", "trixie2", "ubuntu"] {
            assert!(error::is_job_fault(
                &check_image(&allowed, &image(name)).unwrap_err()
            ));
        }
        check_image(&[], &image("any")).unwrap();
    }

    #[test]
    fn the_first_pattern_that_matches_names_the_image() {
        let map = [("ruby:3.*", "ruby"), ("*/node:*", "node"), ("*", "other")];
        let map = map.map(|(glob, image)| (OsString::from(glob), image.to_owned()));
        for (asked, image) in [
            ("ruby:3.2", "ruby"),
            ("x.example/a/node:22", "node"),
            ("ruby:2", "other"),
        ] {
            assert_eq!(mapped(&map, asked), image);
        }
        assert_eq!(mapped(&map[..1], "debian:trixie"), "debian:trixie");
    }

    #[test]
    fn a_layer_can_only_be_smaller() {
        let most = LayerSize::Bytes(1 << 30);
        let smaller = |most, asked| smaller(Layer::Disk, most, asked);
        assert_eq!(smaller(most, "100M").unwrap(), LayerSize::Bytes(100 << 20));
        for asked in ["2G", "infinity", "x", "1K"] {
            assert!(
                error::is_job_fault(&smaller(most, asked).unwrap_err()),
                "{asked}"
            );
        }
        assert_eq!(
            smaller(LayerSize::Infinity, "100M").unwrap(),
            LayerSize::Bytes(100 << 20)
        );
    }
}
