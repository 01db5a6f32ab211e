//! What a GitLab job may ask for: less than the administrator gives, and nothing else.

use std::ffi::{CString, OsString};
use std::os::unix::ffi::OsStrExt;

use anyhow::{Error, Result, bail};
use nix::libc;
use nspawn_common::config::layer::Layer;
use nspawn_common::config::network::Network;
use nspawn_common::config::private_users::PrivateUsers;
use nspawn_common::error;
use nspawn_common::error::Failure;
use nspawn_common::gitlab::{Job, Service};
use nspawn_common::image::lookup;
use nspawn_common::image::lookup::Image;

use crate::create::spec::{JobRequirements, ServiceCommand};
use crate::gitlab::cache;
use crate::gitlab::{job_limits, runner_binary};
use crate::internal::Internal;
use crate::layer::size::LayerSize;
use crate::options::{JobPolicy, MachineOptions, Options};
use crate::services::network;

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

/// Returns the requirements of a job on its machine. `arguments` are those of the call that `options` come from.
pub fn requirements(
    job: &Job,
    options: &Options,
    arguments: &[OsString],
) -> Result<JobRequirements> {
    check_services(job, options)?;
    // A cache needs a user namespace, which maps the owners of its files.
    let has_cache = options.machine.private_users != PrivateUsers::No;
    let cache_size = options.policy.cache_size.filter(|_| has_cache);
    Ok(JobRequirements {
        user: job.user.clone(),
        entrypoint: job.entrypoint.iter().map(OsString::from).collect(),
        cache: cache_size
            .and_then(|_| job.project())
            .map(|project| cache::file(&project)),
        cache_size: options.policy.cache_size.unwrap_or_default(),
        services: (1..)
            .zip(&job.services)
            .map(|(number, service)| service_command(number, service, arguments))
            .collect::<Result<_>>()?,
        services_limit: options.service_limit(),
        runner: runner_binary::caller(),
    })
}

// Before any machine of a service is created.
fn check_services(job: &Job, options: &Options) -> Result<()> {
    if !job.services.is_empty() {
        network::check(&options.machine.network)?;
    }
    let (count, max) = (job.services.len(), options.policy.max_services);
    if count > max.into() {
        bail!(Failure::job(format!(
            "the job has {count} services, and this runner gives {max} at most"
        )));
    }
    for service in &job.services {
        let image = image_of_service(&options.policy, service)?;
        check_image(&options.policy.allowed_services, &image)?;
    }
    Ok(())
}

fn service_command(
    number: u8,
    service: &Service,
    arguments: &[OsString],
) -> Result<ServiceCommand> {
    let form = Internal::Service {
        number,
        options: arguments.to_vec(),
    };
    Ok(ServiceCommand {
        image: service.image.clone(),
        argv: form.argv()?,
    })
}

/// Finds the image of a service.
pub fn image_of_service(policy: &JobPolicy, service: &Service) -> Result<Image> {
    if service.image.is_empty() {
        bail!(Failure::job(
            "a service of the job names no image; add name: to it".to_owned()
        ));
    }
    lookup::find(&map_image(&policy.image_map, &service.image)).map_err(|error: Error| {
        if !error::is_job_fault(&error) {
            return error;
        }
        let text = format!("the service {} can't be had: {error:#}", service.image);
        Failure::job(text).into()
    })
}

/// Returns the image for a job that asks for `image`: that of the first pattern that matches.
pub fn map_image(map: &[(OsString, String)], image: &str) -> String {
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
pub fn apply_job_limits(
    options: &mut MachineOptions,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<()> {
    let properties = job_limits::properties(&options.properties, &variable)?;
    options.properties.extend(properties);
    // Some layers can't have a size: see layer::parse().
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
            assert_eq!(map_image(&map, asked), image);
        }
        assert_eq!(map_image(&map[..1], "debian:trixie"), "debian:trixie");
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
