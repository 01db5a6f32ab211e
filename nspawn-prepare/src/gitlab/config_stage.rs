//! The config stage of a GitLab job, and the lines that the prepare stage writes to the job's log.

use std::ffi::OsStr;
use std::time::Instant;

use anyhow::{Result, bail};
use nix::unistd;
use nspawn_common::config::init::Init;
use nspawn_common::config::layer::Layer;
use nspawn_common::gitlab::Job;
use nspawn_common::report;

use crate::create::spec::MachineSpec;
use crate::diagnostics::print_diagnostic;
use crate::gitlab::{attach, cache, ignored_wishes};
use crate::options::MachineOptions;

/// Prints the settings that GitLab Runner reads in the config stage.
///
/// The keys are those of <https://docs.gitlab.com/runner/executors/custom/#config>. The job's log
/// begins with "Running on MACHINE via HOSTNAME".
pub fn print_config() -> Result<()> {
    let hostname = unistd::gethostname().unwrap_or_default();
    let config = serde_json::json!({
        "driver": { "name": "nspawn-ci", "version": env!("CARGO_PKG_VERSION") },
        "hostname": hostname.to_string_lossy(),
        "builds_dir": attach::BUILDS_IN_MACHINE,
        "cache_dir": cache::IN_MACHINE,
        "builds_dir_is_shared": false,
    });
    report::print_line(OsStr::new(&config.to_string()))
}

/// Refuses modes that lose the job's sources between its stages.
///
/// Each stage of a job is a run of its own, and must find the files of the stages before it.
pub fn check_modes(options: &MachineOptions) -> Result<()> {
    if options.init == Init::None && options.layer == Layer::None {
        bail!(
            "can't use --init=none with --layer=none in a GitLab job: each stage needs the files of the \
             one before; choose --layer=tmpfs, or --init=stub"
        );
    }
    Ok(())
}

/// Writes to the job's log that its machine is ready, which wishes of the job have no effect, and
/// more lines.
///
/// The machine's name is not printed on stdout: the other stages derive it from the job.
pub fn report_ready_machine(
    machine: &MachineSpec,
    job: &Job,
    started: Instant,
    lines: Vec<String>,
) {
    let seconds = started.elapsed().as_secs_f32();
    let image = machine.image.describe();
    print_diagnostic(format!(
        "machine {} of image {image} is ready after {seconds:.1} s",
        machine.name
    ));
    for line in ignored_wishes::describe(job, machine)
        .into_iter()
        .chain(lines)
    {
        print_diagnostic(line);
    }
}
