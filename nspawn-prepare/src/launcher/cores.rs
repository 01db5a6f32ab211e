//! Prevents core dumps of the machine's processes.
//!
//! If the host's `core_pattern` is a pipe (systemd-coredump, apport), its program runs on the host, and writes the
//! memory, the environment and the command line of a job's process to the host's disk and journal. The kernel does not
//! run the program for a process whose RLIMIT_CORE is exactly 1 (core(5)). It does for 0, which `ulimit -c 0` and
//! programs with secrets set. So nothing in the machine may change the limit.

use std::ffi::OsString;

use anyhow::{Context, Result};
use nix::libc::{self, sock_filter};
use nix::sys::resource::{Resource, setrlimit};
use nspawn_common::sys::seccomp;
use nspawn_common::systemd::nspawn::NO_CORES;

/// Architecture of system calls, with its numbers of setrlimit(2) and prlimit(2).
struct Calls {
    architecture: u32,
    setrlimit: u32,
    prlimit: u32,
}

/// Architectures of the kernels that machines run on. The numbers come from linux/audit.h and from the kernel's tables
/// of system calls.
const CALLS: [Calls; 5] = [
    Calls {
        architecture: 0xC000_003E,
        setrlimit: 160,
        prlimit: 302,
    }, // x86-64
    Calls {
        architecture: 0xC000_003E,
        setrlimit: 0x4000_00A0,
        prlimit: 0x4000_012E,
    }, // x32
    Calls {
        architecture: 0x4000_0003,
        setrlimit: 75,
        prlimit: 340,
    }, // i386
    Calls {
        architecture: 0xC000_00B7,
        setrlimit: 164,
        prlimit: 261,
    }, // arm64
    Calls {
        architecture: 0x4000_0028,
        setrlimit: 75,
        prlimit: 369,
    }, // arm
];

// Offsets in struct seccomp_data. The lower half of an argument comes first, because all of these architectures are
// little-endian.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: [u32; 3] = [16, 24, 32];

/// Forbids core dumps if the `options` of systemd-nspawn do.
///
/// Sets the limit to 1 and makes the kernel skip all later changes of it.
pub fn forbid(options: &[OsString]) -> Result<()> {
    let mut options = options.iter().take_while(|word| *word != "--");
    if !options.any(|word| word == NO_CORES) {
        return Ok(());
    }
    setrlimit(Resource::RLIMIT_CORE, 1, 1).context("can't limit core dumps")?;
    seccomp::install(&mut filter())
        .context("can't keep the limit on core dumps; the kernel needs seccomp filters")
}

/// Returns the filter. A skipped call returns 0, because programs such as gpg give up if they can't set the limit.
fn filter() -> Vec<sock_filter> {
    let mut program: Vec<_> = CALLS.iter().flat_map(block).collect();
    program.push(ret(libc::SECCOMP_RET_ALLOW));
    program
}

/// Returns the block for one architecture. It skips the call, or continues with the next block.
fn block(calls: &Calls) -> [sock_filter; 15] {
    let skip = ret(libc::SECCOMP_RET_ERRNO);
    [
        load(ARCHITECTURE),
        jump(calls.architecture, 0, 13),
        load(NUMBER),
        jump(calls.setrlimit, 0, 3),
        // setrlimit(resource, limit)
        load(ARGUMENTS[0]),
        jump(libc::RLIMIT_CORE, 0, 9),
        skip,
        // prlimit(process, resource, limit, old_limit) changes nothing if `limit` is null.
        jump(calls.prlimit, 0, 7),
        load(ARGUMENTS[1]),
        jump(libc::RLIMIT_CORE, 0, 5),
        load(ARGUMENTS[2]),
        jump(0, 0, 2),
        load(ARGUMENTS[2] + 4),
        jump(0, 1, 0),
        skip,
    ]
}

fn load(offset: u32) -> sock_filter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset, 0, 0)
}

/// Skips `if_equal` instructions if the loaded value is `value`, and `if_not` instructions otherwise.
fn jump(value: u32, if_equal: u8, if_not: u8) -> sock_filter {
    instruction(
        libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
        value,
        if_equal,
        if_not,
    )
}

fn ret(action: u32) -> sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, action, 0, 0)
}

fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    // Every code fits into 16 bits.
    sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    }
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;
    use nix::sys::resource::getrlimit;
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};

    use super::*;

    fn keeps_limit() -> Result<bool> {
        nix::sys::prctl::set_no_new_privs()?;
        setrlimit(Resource::RLIMIT_CORE, 1, 1)?;
        seccomp::install(&mut filter())?;
        setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
        // SAFETY: the kernel skips the call, so it does not read the limit at this address.
        Errno::result(unsafe {
            libc::syscall(libc::SYS_prlimit64, 0, libc::RLIMIT_CORE, 1_u64 << 32, 0)
        })?;
        setrlimit(Resource::RLIMIT_NOFILE, 20, 20)?;
        Ok(getrlimit(Resource::RLIMIT_CORE)? == (1, 1)
            && getrlimit(Resource::RLIMIT_NOFILE)? == (20, 20))
    }

    #[test]
    fn only_changes_of_the_core_limit_are_skipped() {
        // SAFETY: the child only makes system calls before it exits.
        match unsafe { fork() }.unwrap() {
            // SAFETY: the child ends here.
            ForkResult::Child => unsafe { libc::_exit(i32::from(!keeps_limit().unwrap_or(false))) },
            ForkResult::Parent { child } => {
                assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0))
            }
        }
    }
}
