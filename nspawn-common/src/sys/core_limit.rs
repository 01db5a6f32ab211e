//! Limit of core dumps that a process and its descendants can't change.
#![allow(unsafe_code)]

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc::{self, sock_filter, sock_fprog};
use nix::sys::resource::{Resource, setrlimit};

/// Numbers of setrlimit(2) and prlimit(2) in an architecture of system calls.
struct Calls {
    architecture: u32,
    setrlimit: u32,
    prlimit: u32,
}

/// Architectures of the kernels that machines run on.
///
/// The numbers come from linux/audit.h and from the kernel's tables of system calls.
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

// Offsets in struct seccomp_data. The lower half of an argument comes first, since all of these
// architectures are little-endian.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: [u32; 3] = [16, 24, 32];

/// Sets RLIMIT_CORE to 1, and makes the kernel skip all later changes of this limit.
///
/// If the host's `core_pattern` is a pipe (systemd-coredump, apport), the kernel starts a program
/// on the host for each core dump. It starts none if the limit is exactly 1. With a limit of 0,
/// which `ulimit -c 0` and programs with secrets set, it does.
pub fn fix_at_one() -> Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 1, 1).context("can't limit core dumps")?;
    install(&mut filter())
        .context("can't keep the limit on core dumps; the kernel needs seccomp filters")
}

// Returns a filter that skips calls which change the limit. A skipped call returns 0, since
// programs such as gpg give up if they can't set the limit.
fn filter() -> Vec<sock_filter> {
    let mut program: Vec<_> = CALLS.iter().flat_map(block).collect();
    program.push(ret(libc::SECCOMP_RET_ALLOW));
    program
}

// Returns the instructions for one architecture. They skip the call, or continue with the next
// block.
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
        // prlimit(process, resource, limit, old_limit), which changes nothing if `limit` is null
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

// Compares the loaded value, and skips `if_equal` or `if_not` instructions.
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
    // The codes of instructions fit into 16 bits.
    sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    }
}

fn install(program: &mut [sock_filter]) -> Result<()> {
    let program = sock_fprog {
        len: u16::try_from(program.len())?,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: seccomp(2) reads `program` and its instructions, which are valid until it returns.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            std::ptr::from_ref(&program),
        )
    };
    Errno::result(result)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use nix::sys::resource::getrlimit;
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};

    use super::*;

    fn keeps_core_limit_alone() -> Result<bool> {
        nix::sys::prctl::set_no_new_privs()?;
        setrlimit(Resource::RLIMIT_CORE, 1, 1)?;
        install(&mut filter())?;
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
        // SAFETY: until its end the child only makes system calls, which are async-signal-safe.
        match unsafe { fork() }.unwrap() {
            // SAFETY: _exit(2) ends the process and runs no code of this program.
            ForkResult::Child => unsafe {
                libc::_exit(i32::from(!keeps_core_limit_alone().unwrap_or(false)))
            },
            ForkResult::Parent { child } => {
                assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0))
            }
        }
    }
}
