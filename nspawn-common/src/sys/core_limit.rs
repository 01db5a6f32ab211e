//! Limit of core dumps that a process and its descendants can't change.

use anyhow::{Context, Result};
use nix::libc;
use nix::sys::resource::{Resource, setrlimit};

use crate::sys::seccomp::{self, ALLOW, ARGUMENTS, Calls, Filter, SKIP};

/// Numbers of setrlimit(2) and prlimit(2), from the kernel's tables of system calls.
const CALLS: [Calls; 4] = [
    (
        "x86-64",
        seccomp::X86_64,
        &[
            (160, "setrlimit"),
            (302, "prlimit"),
            (160 | seccomp::X32, "setrlimit"),
            (302 | seccomp::X32, "prlimit"),
        ],
    ),
    (
        "i386",
        seccomp::I386,
        &[(75, "setrlimit"), (340, "prlimit")],
    ),
    (
        "arm64",
        seccomp::ARM64,
        &[(164, "setrlimit"), (261, "prlimit")],
    ),
    ("arm", seccomp::ARM, &[(75, "setrlimit"), (369, "prlimit")]),
];

/// Sets RLIMIT_CORE to 1, and makes the kernel skip all later changes of this limit.
///
/// If the host's `core_pattern` is a pipe (systemd-coredump, apport), the kernel starts a program
/// on the host for each core dump. It starts none if the limit is exactly 1. With a limit of 0,
/// which `ulimit -c 0` and programs with secrets set, it does.
pub fn fix_at_one() -> Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 1, 1).context("can't limit core dumps")?;
    filter()
        .install()
        .context("can't keep the limit on core dumps; the kernel needs seccomp filters")
}

// Returns a filter that skips calls which change the limit. A skipped call returns 0, since
// programs such as gpg give up if they can't set the limit.
fn filter() -> Filter {
    let mut filter = Filter::new(&CALLS, ALLOW);
    // setrlimit(resource, limit)
    filter.place("setrlimit");
    filter.load(ARGUMENTS[0]);
    filter.go_if_equal(libc::RLIMIT_CORE, "skip");
    filter.end(ALLOW);
    // prlimit(process, resource, limit, old_limit), which changes nothing if `limit` is null
    filter.place("prlimit");
    filter.load(ARGUMENTS[1]);
    filter.go_if_equal(libc::RLIMIT_CORE, "core");
    filter.end(ALLOW);
    filter.place("core");
    filter.load(ARGUMENTS[2]);
    filter.go_if_equal(0, "low half is zero");
    filter.end(SKIP);
    filter.place("low half is zero");
    filter.load(ARGUMENTS[2] + 4);
    filter.go_if_equal(0, "null");
    filter.place("skip");
    filter.end(SKIP);
    filter.place("null");
    filter.end(ALLOW);
    filter
}

#[cfg(test)]
mod tests {
    #![allow(unsafe_code)]

    use nix::errno::Errno;
    use nix::sys::resource::getrlimit;

    use super::*;
    use crate::sys::seccomp::tests::holds_in_child;

    fn keeps_core_limit_alone() -> Result<bool> {
        setrlimit(Resource::RLIMIT_CORE, 1, 1)?;
        filter().install()?;
        setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
        // SAFETY: the kernel skips the call, so it reads nothing at this address.
        Errno::result(unsafe {
            libc::syscall(libc::SYS_prlimit64, 0, libc::RLIMIT_CORE, 1_u64 << 32, 0)
        })?;
        setrlimit(Resource::RLIMIT_NOFILE, 20, 20)?;
        Ok(getrlimit(Resource::RLIMIT_CORE)? == (1, 1)
            && getrlimit(Resource::RLIMIT_NOFILE)? == (20, 20))
    }

    #[test]
    fn only_the_limit_of_core_dumps_is_fixed() {
        holds_in_child(keeps_core_limit_alone);
    }
}
