//! Specification of a machine that is to be created.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use nspawn_common::config::layer::Layer;
use nspawn_common::gitlab::Job;
use nspawn_common::image::lookup::Image;
use nspawn_common::machine::name::MachineName;
use nspawn_common::machine::paths::MachinePaths;
use nspawn_common::machine::state::ServiceRole;
use nspawn_common::sys::process::ProcessId;

use crate::device::{Device, Node};
use crate::options::MachineOptions;

/// Time by which a machine may outlive the time limit of its job: the stages after the job's script
/// take some, and a machine that is still there after that would surprise its administrator.
const LIFETIME_MARGIN: Duration = Duration::from_secs(30 * 60);

/// A machine that is to be created.
#[derive(Clone)]
pub struct MachineSpec {
    pub name: MachineName,
    pub paths: MachinePaths,
    pub image: Image,
    pub options: MachineOptions,
    /// Size limit of the layer, in bytes; `None` for that of the host's file system.
    pub layer_size: Option<u64>,
    /// Time after which the machine is stale, for machines of a job with a time limit.
    pub lifetime: Option<Duration>,
    /// Content of the standby mark, for a machine of a pool.
    pub pool: Option<String>,
    pub job: JobRequirements,
    /// Role of the machine, for a service of a job.
    pub service: Option<ServiceRole>,
}

/// Requirements of a GitLab job on its machine, besides the image.
#[derive(Clone, Default)]
pub struct JobRequirements {
    /// User that the job's scripts run as.
    pub user: Option<String>,
    /// Entrypoint of the job's own scripts.
    pub entrypoint: Vec<OsString>,
    /// File with the cache of the job's project.
    pub cache: Option<PathBuf>,
    /// Size of a new cache, in bytes.
    pub cache_size: u64,
    pub services: Vec<ServiceCommand>,
    /// Properties with the limits that the job and its services share.
    pub shared_properties: Vec<OsString>,
    /// Time limit for all services to be created and ready.
    pub services_limit: Duration,
    /// Process of the GitLab Runner that runs the job.
    pub runner: Option<ProcessId>,
}

/// Command that creates the machine of a service.
#[derive(Clone, Debug)]
pub struct ServiceCommand {
    /// Image that the job requests.
    pub image: String,
    pub argv: Vec<OsString>,
}

impl JobRequirements {
    /// Returns whether the machine needs to be given anything once it runs.
    pub fn need_attaching(&self) -> bool {
        self.user.is_some() || self.cache.is_some() || !self.services.is_empty()
    }
}

impl MachineSpec {
    /// Returns the specification of a machine that is neither a job's, nor a service's, nor a
    /// pool's.
    pub fn new(
        name: MachineName,
        image: Image,
        options: MachineOptions,
        lifetime: Option<Duration>,
    ) -> Result<Self> {
        let layer_size = options.layer_size.bytes(options.layer)?;
        Ok(Self {
            paths: MachinePaths::named(&name),
            name,
            image,
            options,
            layer_size,
            lifetime,
            pool: None,
            job: JobRequirements::default(),
            service: None,
        })
    }

    /// Puts the machine in the slice that the machines of this job share.
    pub fn join_slice_of(&mut self, job: MachineName) {
        self.paths = self.paths.clone().in_slice_of(Some(job));
    }

    /// Returns the device nodes that the machine gets, each once.
    pub fn device_nodes(&self) -> Vec<Node> {
        let mut nodes: Vec<Node> = Vec::new();
        for node in self.options.devices.iter().flat_map(Device::nodes) {
            if !nodes.contains(&node) {
                nodes.push(node);
            }
        }
        nodes
    }

    /// Returns whether the machine mounts file systems that are in files.
    pub fn has_disks(&self) -> bool {
        self.image.has_disks() || (self.options.layer == Layer::Disk && self.layer_size.is_some())
    }
}

/// Returns the lifetime of the machines of a job.
pub fn lifetime(job: &Job) -> Option<Duration> {
    job.timeout.map(|limit| limit + LIFETIME_MARGIN)
}
