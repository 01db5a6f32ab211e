//! BPF programs that allow or deny the connections of the processes in a cgroup (bpf(2)).
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Result, anyhow};
use nix::errno::Errno;
use nix::libc;

// Constants of `linux/bpf.h`, which the libc crate lacks.
const BPF_PROG_LOAD: u32 = 5;
const BPF_PROG_ATTACH: u32 = 8;
const BPF_PROG_TYPE_CGROUP_SOCK_ADDR: u32 = 18;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// Event at which the kernel calls a program. The values are those of `enum bpf_attach_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Hook {
    /// connect(2) to an IPv4 address.
    Inet4Connect = 10,
    /// connect(2) to an IPv6 address.
    Inet6Connect = 11,
    /// sendmsg(2) to an IPv4 address.
    Udp4Sendmsg = 14,
    /// sendmsg(2) to an IPv6 address.
    Udp6Sendmsg = 15,
}

/// BPF instruction (`struct bpf_insn`, on a little-endian processor).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u8,
    /// Target register in the lower four bits, source register in the upper ones.
    pub registers: u8,
    /// Offset of an access to memory, or number of instructions to skip.
    pub offset: i16,
    /// Immediate operand.
    pub value: i32,
}

/// Part of `union bpf_attr` that `BPF_PROG_LOAD` reads.
#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

/// Part of `union bpf_attr` that `BPF_PROG_ATTACH` reads.
#[repr(C)]
struct AttachAttributes {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

/// Loads a program into the kernel, and attaches it to the cgroup.
///
/// Programs that are attached to the cgroup already stay in force.
pub fn attach(cgroup: &File, hook: Hook, program: &[Instruction]) -> Result<()> {
    let program = load(hook, program)?;
    let attributes = AttachAttributes {
        target_fd: u32::try_from(cgroup.as_raw_fd())?,
        attach_bpf_fd: u32::try_from(program.as_raw_fd())?,
        attach_type: hook as u32,
        attach_flags: BPF_F_ALLOW_MULTI,
    };
    bpf(BPF_PROG_ATTACH, &attributes)
        .map_err(|error| anyhow!("can't attach the filter: {error}"))?;
    Ok(())
}

fn load(hook: Hook, program: &[Instruction]) -> Result<OwnedFd> {
    const LICENSE: &CStr = c"MIT";
    let attributes = LoadAttributes {
        prog_type: BPF_PROG_TYPE_CGROUP_SOCK_ADDR,
        insn_cnt: u32::try_from(program.len())?,
        insns: program.as_ptr() as u64,
        license: LICENSE.as_ptr() as u64,
        expected_attach_type: hook as u32,
        ..LoadAttributes::default()
    };
    let fd = bpf(BPF_PROG_LOAD, &attributes)
        .map_err(|error| anyhow!("can't load the filter: {error}"))?;
    // SAFETY: the kernel has just created this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bpf<Attributes>(command: u32, attributes: &Attributes) -> io::Result<i32> {
    // SAFETY: bpf(2) reads a structure of the given size. The pointers in it are valid until the
    // call returns.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<Attributes>()) };
    i32::try_from(Errno::result(result)?).map_err(io::Error::other)
}
