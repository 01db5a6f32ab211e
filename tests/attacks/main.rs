//! The attack suite: attacks by root in a machine with the default options, on its host and on
//! other machines. The table has a row for each attack: the isolation has held, or it is broken.
//!
//! An attack that succeeds nowhere proves nothing. Most attacks therefore also run as a control, on
//! the host itself or in a machine without isolation, where they must succeed. The column `control`
//! names that place.
//!
//! | module | target |
//! | --- | --- |
//! | [`files`] | the host's files, by proc, sys, cgroups, bind mounts and file descriptors |
//! | [`devices`] | the host's disks and other devices, and its kernel's file systems |
//! | [`fuse`] | the end of nspawn-run and the removal of the machine, by FUSE |
//! | [`kernel`] | the kernel, which the host and all machines share |
//! | [`processes`] | processes of the host and of other machines |
//! | [`network`] | the host's network, and the traffic of other machines |
//! | [`sockets`] | the kernel's modules for sockets |
//! | [`keys`] | the kernel's keyrings |
//! | [`pools`] | what the kernel and the host have only so much of |
//! | [`shared`] | host programs that read files of a machine |
//! | [`kept`] | host programs that show the files of a machine that has ended |
//! | [`jobs`] | the limits and images of GitLab jobs |
//! | [`secrets`] | the data of machines, by other users of the host |

// An attack stops at the first unexpected result.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod devices;
mod files;
mod fuse;
mod jobs;
mod kept;
mod kernel;
mod keys;
mod network;
mod pools;
mod probe;
mod processes;
mod secrets;
mod shared;
mod sockets;
mod suite;

use std::process::ExitCode;

use nspawn_tests::left_of;
use suite::{Control, Fixture, Suite};

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(sockets::PROBE) {
        sockets::print();
        return ExitCode::SUCCESS;
    }
    let (mut suite, fixture) = (Suite::new(), Fixture::new());
    for run_rows in [
        files::rows,
        devices::rows,
        kernel::rows,
        processes::rows,
        network::rows,
        sockets::rows,
        keys::rows,
        pools::rows,
        shared::rows,
        kept::rows,
        jobs::rows,
        secrets::rows,
        fuse::rows,
    ] {
        run_rows(&mut suite, &fixture);
    }
    drop(fixture);
    suite.row("all machines of the attacks can be removed", || {
        assert_eq!(left_of(&suite::prefix()), "");
        Control::Absent
    });
    suite.finish()
}
