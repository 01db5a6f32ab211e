//! The attack suite: what root in a machine of the default options can do to its host and to other
//! machines. A line for each attack, which has held or is broken.
//!
//! An attack that can't break proves nothing, so most are made twice: on the host itself, or in a machine
//! without isolation, they must get in.
//!
//! | module | what is attacked |
//! | --- | --- |
//! | [`files`] | the host's files: proc, sys, cgroups, binds, descriptors |
//! | [`devices`] | its disks and other devices, file systems of its kernel |
//! | [`kernel`] | the kernel that all share |
//! | [`processes`] | processes of the host and of other machines |
//! | [`network`] | the host's network, and what others send |
//! | [`keys`] | the kernel's keyrings |
//! | [`shared`] | what the host reads of a machine |
//! | [`jobs`] | what a GitLab job says of itself |
//! | [`secrets`] | what other users of the host see of machines |

// An attack stops at what it did not expect.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod devices;
mod files;
mod jobs;
mod kernel;
mod keys;
mod network;
mod probe;
mod processes;
mod secrets;
mod shared;
mod suite;

use std::process::ExitCode;

use nspawn_tests::left_of;
use suite::{Control, Field, Suite};

fn main() -> ExitCode {
    let filters = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    let (mut suite, field) = (Suite::new(filters), Field::new());
    for group in [
        files::rows,
        devices::rows,
        kernel::rows,
        processes::rows,
        network::rows,
        keys::rows,
        shared::rows,
        jobs::rows,
        secrets::rows,
    ] {
        group(&mut suite, &field);
    }
    drop(field);
    suite.row("all that was attacked from can be removed", || {
        assert_eq!(left_of(&suite::prefix()), "");
        Control::Nowhere
    });
    suite.finish()
}
