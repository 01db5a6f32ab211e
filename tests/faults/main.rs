//! The fault suite: a table with a row for each fault, its tries, the tries in which the programs
//! behaved, and the number of things left behind.
//!
//! `--long` tries more often, and adds faults that take long. Everything happens to the host that
//! runs the suite, which must have no other machines meanwhile.
//!
//! | module | fault |
//! | --- | --- |
//! | [`machine_deaths`] | the machine dies under a command |
//! | [`exit_statuses`] | a command ends with a status or by a signal |
//! | [`guest_failures`] | the machine's own services fail under a command |
//! | [`hostile_agent`] | the agent is killed, stopped, or replaced by another program |
//! | [`cancellation`] | a job is cancelled, and its processes ignore that |
//! | [`program_kills`] | the programs are killed at a random moment |
//! | [`resource_exhaustion`] | the host runs out of space, open files or inotify instances |
//! | [`full_disk`] | the layers together are larger than their disk |
//! | [`concurrency`] | many programs run at the same time |
//! | [`tracer`] | the tracer of systemd-nspawn is refused, or killed |
//! | [`throughput`] | a command moves many bytes |
//! | [`hostile_layers`] | an attacker wrote the layer |

// A try stops at the first unexpected result.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod cancellation;
mod concurrency;
mod exit_statuses;
mod full_disk;
mod guest_failures;
mod hostile_agent;
mod hostile_layers;
mod machine_deaths;
mod program_kills;
mod resource_exhaustion;
mod suite;
mod throughput;
mod tracer;

use std::process::ExitCode;

use suite::Suite;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments
        .first()
        .is_some_and(|first| first == hostile_agent::OPTION)
    {
        hostile_agent::serve(&arguments[1]);
    }
    let mut suite = Suite::new();
    for run_rows in [
        machine_deaths::rows,
        exit_statuses::rows,
        guest_failures::rows,
        hostile_agent::rows,
        cancellation::rows,
        program_kills::rows,
        resource_exhaustion::rows,
        full_disk::rows,
        concurrency::rows,
        tracer::rows,
        throughput::rows,
        hostile_layers::rows,
    ] {
        run_rows(&mut suite);
    }
    suite.finish()
}
