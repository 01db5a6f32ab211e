//! Policy for GitLab jobs: images and services that a job may use, and limits that it may lower.

use std::ffi::OsString;

use anyhow::{Result, bail};
use nspawn_common::config::layer::Layer;
use nspawn_common::config::network::Network;
use nspawn_common::config::private_users::PrivateUsers;
use nspawn_common::error;
use nspawn_common::error::Failure;
use nspawn_common::gitlab::{Job, Service};
use nspawn_common::image::lookup;
use nspawn_common::image::lookup::Image;
use nspawn_common::sys::glob;

use crate::create::spec::{JobRequirements, ServiceCommand};
use crate::gitlab::{cache, job_limits, runner_binary};
use crate::internal_form::Internal;
use crate::layer::size::LayerSize;
use crate::options::{JobPolicy, MachineOptions, Options};
use crate::services::network;

/// Refuses an image that matches none of the `allowed` patterns.
///
/// Without patterns, every image is allowed.
pub fn check_image(allowed: &[OsString], image: &Image) -> Result<()> {
    let matches = |pattern: &OsString| glob::matches(pattern, &image.name);
    if allowed.is_empty() || allowed.iter().any(matches) {
        return Ok(());
    }
    let allowed: Vec<_> = allowed
        .iter()
        .map(|pattern| pattern.to_string_lossy())
        .collect();
    bail!(Failure::job(format!(
        "the image {} is not allowed on this runner; allowed images are {}",
        image.name,
        allowed.join(", ")
    )))
}

/// Returns the requirements of a job on its machine.
///
/// `arguments` are the command line that `options` come from.
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
        cache_size: cache_size.unwrap_or_default(),
        services: (1..)
            .zip(&job.services)
            .map(|(number, service)| service_command(number, service, arguments))
            .collect::<Result<_>>()?,
        shared_properties: options.machine.properties.clone(),
        services_limit: options.service_limit(),
        runner: runner_binary::caller(),
    })
}

/// Checks the services of a job before any of their machines is created.
fn check_services(job: &Job, options: &Options) -> Result<()> {
    if !job.services.is_empty() {
        network::check(&options.machine.network)?;
    }
    let (count, max) = (job.services.len(), options.policy.max_services);
    if count > max.into() {
        bail!(Failure::job(format!(
            "the job has {count} services, and this runner allows {max} at most"
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
            "a service of the job names no image; add name: to it"
        ));
    }
    lookup::find(&map_image(&policy.image_map, &service.image)).map_err(|error| {
        if !error::is_job_fault(&error) {
            return error;
        }
        let name = &service.image;
        Failure::job(format!("can't use the service {name}: {error:#}")).into()
    })
}

/// Returns the name of the host's image for a job that requests `image`.
///
/// The first pattern that matches decides. Without a match, the name is `image` itself.
pub fn map_image(map: &[(OsString, String)], image: &str) -> String {
    let entry = map
        .iter()
        .find(|(pattern, _)| glob::matches(pattern, image));
    entry.map_or(image, |(_, image)| image).to_owned()
}

/// Lowers limits as the `NSPAWN_JOB_…` variables of the job ask for.
///
/// `variable` returns the value of a variable.
pub fn apply_job_limits(
    options: &mut MachineOptions,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<()> {
    let properties = job_limits::properties(&options.properties, &variable)?;
    options.properties.extend(properties);
    if let Some(size) = variable("NSPAWN_JOB_LAYER_SIZE").filter(|_| has_layer_size(options)) {
        options.layer_size = lower_layer_size(options.layer, options.layer_size, &size)?;
    }
    match variable("NSPAWN_JOB_NETWORK").as_deref() {
        None => {}
        Some("none") => options.network = Network::None,
        Some(value) => bail!(Failure::job(format!(
            "can't use the job's NSPAWN_JOB_NETWORK={value}: only the value none is allowed"
        ))),
    }
    Ok(())
}

/// Returns whether the layer can have a size limit: see `layer::parse()`.
fn has_layer_size(options: &MachineOptions) -> bool {
    let has_file =
        options.layer_size != LayerSize::Infinity || options.private_users != PrivateUsers::No;
    has_file && options.layer != Layer::Snapshot
}

fn lower_layer_size(layer: Layer, limit: LayerSize, value: &str) -> Result<LayerSize> {
    let refuse = |cause: String| {
        Failure::job(format!(
            "can't use the job's NSPAWN_JOB_LAYER_SIZE={value}: {cause}"
        ))
    };
    let size = LayerSize::parse(value).map_err(|error| refuse(format!("{error:#}")))?;
    // The free space may change between two computations of sizes, so two percentages are compared
    // as they are.
    if let (LayerSize::Percent(percent), LayerSize::Percent(max)) = (size, limit) {
        if percent > max {
            bail!(refuse(format!("this runner allows {max}% at most")));
        }
        return Ok(size);
    }
    match (size.bytes(layer)?, limit.bytes(layer)?) {
        (None, Some(limit)) => bail!(refuse(format!("this runner allows {limit} bytes at most"))),
        (Some(size), Some(limit)) if size > limit => {
            bail!(refuse(format!("this runner allows {limit} bytes at most")))
        }
        (size, _) => Ok(size.map_or(LayerSize::Infinity, LayerSize::Bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(name: &str) -> Image {
        Image {
            name: name.to_owned(),
            path: "/x".into(),
            layers: vec!["/x".into()],
        }
    }

    #[test]
    fn images_are_allowed_by_patterns() {
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
    fn first_pattern_that_matches_determines_the_image() {
        let map = [("ruby:3.*", "ruby"), ("*/node:*", "node"), ("*", "other")];
        let map = map.map(|(glob, image)| (OsString::from(glob), image.to_owned()));
        for (requested, image) in [
            ("ruby:3.2", "ruby"),
            ("x.example/a/node:22", "node"),
            ("ruby:2", "other"),
        ] {
            assert_eq!(map_image(&map, requested), image);
        }
        assert_eq!(map_image(&map[..1], "debian:trixie"), "debian:trixie");
    }

    #[test]
    fn layer_size_can_only_be_lowered() {
        let limit = LayerSize::Bytes(1 << 30);
        let lower = |limit, value| lower_layer_size(Layer::Disk, limit, value);
        assert_eq!(lower(limit, "100M").unwrap(), LayerSize::Bytes(100 << 20));
        for value in ["2G", "infinity", "x", "1K"] {
            assert!(
                error::is_job_fault(&lower(limit, value).unwrap_err()),
                "{value}"
            );
        }
        assert_eq!(
            lower(LayerSize::Infinity, "100M").unwrap(),
            LayerSize::Bytes(100 << 20)
        );
    }

    #[test]
    fn percentages_are_compared_without_the_free_space() {
        let half = LayerSize::Percent(50);
        let lower = |value| lower_layer_size(Layer::Disk, half, value);
        assert_eq!(lower("50%").unwrap(), half);
        assert_eq!(lower("1%").unwrap(), LayerSize::Percent(1));
        let error = lower("51%").unwrap_err();
        assert!(error::is_job_fault(&error) && error.to_string().ends_with("allows 50% at most"));
    }
}
