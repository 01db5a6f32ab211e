//! A BPF program that decides about the connections of the processes in a cgroup.
//!
//! The kernel calls the program for each `connect(2)` and each `sendmsg(2)` with an address.
//!
//! | module | contents |
//! | --- | --- |
//! | [`program`] | the instructions of the program |

mod program;

use std::fs::File;

use anyhow::Result;
use nspawn_common::sys::bpf;

use crate::network::destination::Destination;
use program::Instruction;

/// Event at which the kernel calls a program (`linux/bpf.h`).
struct Hook {
    attach_type: u32,
    is_ipv6: bool,
}

// Numbers of `linux/bpf.h`, which the libc crate lacks.
const BPF_CGROUP_INET4_CONNECT: u32 = 10;
const BPF_CGROUP_INET6_CONNECT: u32 = 11;
const BPF_CGROUP_UDP4_SENDMSG: u32 = 14;
const BPF_CGROUP_UDP6_SENDMSG: u32 = 15;

const HOOKS: [Hook; 4] = [
    Hook {
        attach_type: BPF_CGROUP_INET4_CONNECT,
        is_ipv6: false,
    },
    Hook {
        attach_type: BPF_CGROUP_INET6_CONNECT,
        is_ipv6: true,
    },
    Hook {
        attach_type: BPF_CGROUP_UDP4_SENDMSG,
        is_ipv6: false,
    },
    Hook {
        attach_type: BPF_CGROUP_UDP6_SENDMSG,
        is_ipv6: true,
    },
];

/// Refuses connections to `denied` destinations that are not `allowed` to all processes in the cgroup.
pub fn filter_connections(
    cgroup: &File,
    allowed: &[Destination],
    denied: &[Destination],
) -> Result<()> {
    for hook in &HOOKS {
        let instructions: Vec<_> = program::assemble(hook.is_ipv6, allowed, denied)
            .into_iter()
            .map(Instruction::to_bytes)
            .collect();
        let program = bpf::load(hook.attach_type, &instructions)?;
        bpf::attach(cgroup, hook.attach_type, &program)?;
    }
    Ok(())
}
