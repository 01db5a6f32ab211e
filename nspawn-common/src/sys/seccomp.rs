//! Filters of system calls (seccomp(2)), for all interfaces of system calls that a machine can use.
#![allow(unsafe_code)]

use std::os::fd::{FromRawFd, OwnedFd};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::libc::{self, sock_filter, sock_fprog};
use nix::unistd::Pid;

// Architectures of system calls (linux/audit.h). The kernels of x86-64 and arm64 have no others.
/// x86-64 and x32.
pub const X86_64: u32 = 0xC000_003E;
/// i386, also for `int 0x80` in programs for x86-64.
pub const I386: u32 = 0x4000_0003;
/// arm64.
pub const ARM64: u32 = 0xC000_00B7;
/// 32-bit programs on arm64.
pub const ARM: u32 = 0x4000_0028;
/// Bit that distinguishes the numbers of x32 from those of x86-64.
pub const X32: u32 = 0x4000_0000;

// Offsets in struct seccomp_data. The lower half of an argument comes first, since all of these
// architectures are little-endian.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
/// Lower halves of the arguments.
pub const ARGUMENTS: [u32; 3] = [16, 24, 32];

/// Flags for a listener. While it handles a call, no signal but SIGKILL interrupts the call's thread
/// (kernel 5.19), so that no call is repeated.
const NEW_LISTENER: libc::c_ulong =
    libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;

/// Request of ptrace(2) for a filter (linux/ptrace.h), which the libc crate lacks.
const GET_FILTER: libc::c_uint = 0x420c;

/// Name of a place in a filter.
pub type Label = &'static str;

/// System calls of an architecture: its name in the filter, its value, and for each number the place
/// that decides on the call.
pub type Calls = (Label, u32, &'static [(u32, Label)]);

/// A filter in the making, from its first instruction to its last.
#[derive(Default)]
pub struct Filter {
    instructions: Vec<sock_filter>,
    /// Places, with the index of the next instruction.
    places: Vec<(Label, usize)>,
    /// Indexes of jumps, with their targets.
    jumps: Vec<(usize, Label)>,
}

impl Filter {
    /// Returns a filter that continues at the places which `calls` names, and allows all other
    /// system calls of these architectures. System calls of other architectures get `default`.
    #[must_use]
    pub fn new(calls: &[Calls], default: u32) -> Self {
        let mut filter = Self::default();
        filter.load(ARCHITECTURE);
        for (name, architecture, _) in calls {
            filter.go_if_equal(*architecture, name);
        }
        filter.end(default);
        for (name, _, numbers) in calls {
            filter.place(name);
            filter.load(NUMBER);
            for (number, target) in *numbers {
                filter.go_if_equal(*number, target);
            }
            filter.end(ALLOW);
        }
        filter
    }

    /// Names the place before the next instruction.
    pub fn place(&mut self, name: Label) {
        self.places.push((name, self.instructions.len()));
    }

    /// Loads 32 bits of struct seccomp_data.
    pub fn load(&mut self, offset: u32) {
        self.add(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset);
    }

    /// Continues at `target`, which must follow, if the loaded bits have this value.
    pub fn go_if_equal(&mut self, value: u32, target: Label) {
        self.jumps.push((self.instructions.len(), target));
        self.add(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value);
    }

    /// Ends the filter with this action.
    pub fn end(&mut self, action: u32) {
        self.add(libc::BPF_RET | libc::BPF_K, action);
    }

    fn add(&mut self, code: u32, k: u32) {
        // The codes of instructions fit into 16 bits.
        let code = code as u16;
        self.instructions.push(sock_filter {
            code,
            jt: 0,
            jf: 0,
            k,
        });
    }

    /// Returns the instructions, with the targets of all jumps.
    fn assemble(mut self) -> Result<Vec<sock_filter>> {
        for (index, target) in self.jumps {
            let Some((_, place)) = self.places.iter().find(|(name, _)| *name == target) else {
                bail!("a filter has no place {target}");
            };
            let skipped = place
                .checked_sub(index + 1)
                .context("a filter has a loop")?;
            self.instructions[index].jt = u8::try_from(skipped)?;
        }
        Ok(self.instructions)
    }

    /// Adds the filter to this process and its descendants, for good.
    pub fn install(self) -> Result<()> {
        self.set(0).map(drop)
    }

    /// Does the same, and returns the descriptor that receives calls with the action [`NOTIFY`].
    pub fn install_with_listener(self) -> Result<OwnedFd> {
        let fd = self.set(NEW_LISTENER)?;
        // SAFETY: the kernel has just created this descriptor, so nothing else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd)?) })
    }

    fn set(self, flags: libc::c_ulong) -> Result<i64> {
        set(self.assemble()?, flags)
    }
}

fn set(mut instructions: Vec<sock_filter>, flags: libc::c_ulong) -> Result<i64> {
    let program = sock_fprog {
        len: u16::try_from(instructions.len())?,
        filter: instructions.as_mut_ptr(),
    };
    // SAFETY: seccomp(2) reads `program` and its instructions, which are valid until it returns.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            std::ptr::from_ref(&program),
        )
    };
    Ok(Errno::result(result)?)
}

/// A filter as the kernel has it. Each number is an instruction: `code`, `jt`, `jf` and `k` of struct
/// sock_filter, from the highest bits to the lowest.
pub type Program = Vec<u64>;

/// Adds a filter that [`program_of`] returned to this process and its descendants, for good.
pub fn install(program: &[u64]) -> Result<()> {
    let instructions = program.iter().map(|word| sock_filter {
        code: (word >> 48) as u16,
        jt: (word >> 40) as u8,
        jf: (word >> 32) as u8,
        k: *word as u32,
    });
    set(instructions.collect(), 0).map(drop)
}

/// Returns a filter of a process that this one traces, and that is stopped; `None` if the process has
/// no more filters. The first filter that it got has the index 0.
///
/// # Errors
/// Fails if this process has filters itself, or not all capabilities of the host (ptrace(2),
/// `PTRACE_SECCOMP_GET_FILTER`).
pub fn program_of(process: Pid, index: usize) -> Result<Option<Program>> {
    let read = |filter: *mut sock_filter| {
        // SAFETY: the kernel writes the instructions of a filter to `filter`, unless it is null.
        let length = unsafe { libc::ptrace(GET_FILTER, process.as_raw(), index, filter) };
        Errno::result(length)
    };
    let length = match read(std::ptr::null_mut()) {
        Err(Errno::ENOENT) => return Ok(None),
        length => usize::try_from(length?)?,
    };
    // SAFETY: the structure consists of integers, for which zero is a value.
    let mut instructions: Vec<sock_filter> = vec![unsafe { std::mem::zeroed() }; length];
    read(instructions.as_mut_ptr())?;
    let packed = instructions.iter().map(|instruction| {
        u64::from(instruction.code) << 48
            | u64::from(instruction.jt) << 40
            | u64::from(instruction.jf) << 32
            | u64::from(instruction.k)
    });
    Ok(Some(packed.collect()))
}

/// Action that allows a call.
pub const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
/// Action that skips a call, which returns 0.
pub const SKIP: u32 = libc::SECCOMP_RET_ERRNO;
/// Action that leaves a call to the process with the listener.
pub const NOTIFY: u32 = libc::SECCOMP_RET_USER_NOTIF;

/// Returns the action that refuses a call with this error.
#[must_use]
pub const fn refuse(error: Errno) -> u32 {
    libc::SECCOMP_RET_ERRNO | error as u32
}

#[cfg(test)]
pub(super) mod tests {
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};

    use super::*;

    /// Runs `check` in a child process. Filters that it installs end with the process.
    pub fn holds_in_child(check: fn() -> Result<bool>) {
        // SAFETY: until its end the child only allocates and makes system calls. glibc's allocator
        // works in the child of a process with threads.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                let holds = nix::sys::prctl::set_no_new_privs().is_ok() && check().unwrap_or(false);
                // SAFETY: _exit(2) ends the process and runs no code of this program.
                unsafe { libc::_exit(i32::from(!holds)) }
            }
            ForkResult::Parent { child } => {
                assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0))
            }
        }
    }

    #[test]
    fn jumps_need_a_target_that_follows() {
        let mut filter = Filter::default();
        filter.go_if_equal(1, "nowhere");
        assert!(filter.assemble().is_err());
        let mut filter = Filter::default();
        filter.place("before");
        filter.go_if_equal(1, "before");
        assert!(filter.assemble().is_err());
    }
}
