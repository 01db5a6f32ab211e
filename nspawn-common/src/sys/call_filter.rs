//! Filter of the system calls that reach beyond a machine: those for sockets, for the kernel's
//! keyrings, and for all file systems of the host.
//!
//! The filter covers socket(2) and socketpair(2) in all interfaces of system calls. Two other calls
//! create sockets too, and hide the family from filters: io_uring has an operation for it, and the
//! socketcall(2) of i386 has its arguments in memory.
//!
//! sync(2) writes all file systems of the host to its disks. It reports no errors, and what it
//! promises concerns only files that outlive the machine.

use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc;

use crate::sys::seccomp::{self, ALLOW, ARGUMENTS, Calls, Filter, NOTIFY, SKIP};

/// Families of every machine: all that ordinary programs use, and that have network namespaces.
const FAMILIES: [libc::c_int; 5] = [
    libc::AF_UNIX,
    libc::AF_INET,
    libc::AF_INET6,
    libc::AF_NETLINK,
    libc::AF_PACKET,
];

/// Protocols of AF_NETLINK that are of use in a machine.
///
/// The others lead to modules that a machine must not reach (NETLINK_XFRM, NETLINK_CRYPTO,
/// NETLINK_RDMA, NETLINK_SMC), the kernel answers them on the host only (NETLINK_AUDIT,
/// NETLINK_CONNECTOR, NETLINK_SELINUX), or they have no users.
const NETLINK_PROTOCOLS: [libc::c_int; 6] = [
    libc::NETLINK_ROUTE,
    libc::NETLINK_USERSOCK,
    libc::NETLINK_SOCK_DIAG,
    libc::NETLINK_NETFILTER,
    libc::NETLINK_KOBJECT_UEVENT,
    libc::NETLINK_GENERIC,
];

// Constants that the libc crate lacks (linux/socket.h, linux/in.h).
const AF_SMC: u32 = 43;
/// Protocol by which an AF_INET or AF_INET6 socket is one of AF_SMC (kernel 6.11).
const IPPROTO_SMC: u32 = 256;

// Operations of socketcall(2) (linux/net.h).
/// Operation that creates a socket.
pub const SYS_SOCKET: u32 = 1;
/// Operation that creates a pair of sockets.
pub const SYS_SOCKETPAIR: u32 = 8;

/// Numbers of the calls, from the kernel's tables of system calls.
const CALLS: [Calls; 4] = [
    (
        "x86-64",
        seccomp::X86_64,
        &[
            (41, "socket"),
            (53, "socket"),
            (425, "io_uring"),
            (162, "sync"),
            (248, "keys"),
            (249, "missing"),
            (250, "keys"),
            (41 | seccomp::X32, "socket"),
            (53 | seccomp::X32, "socket"),
            (425 | seccomp::X32, "io_uring"),
            (162 | seccomp::X32, "sync"),
            (248 | seccomp::X32, "keys"),
            (249 | seccomp::X32, "missing"),
            (250 | seccomp::X32, "keys"),
        ],
    ),
    (
        "i386",
        seccomp::I386,
        &[
            (359, "socket"),
            (360, "socket"),
            (102, "socketcall"),
            (425, "io_uring"),
            (36, "sync"),
            (286, "keys"),
            (287, "missing"),
            (288, "keys"),
        ],
    ),
    (
        "arm64",
        seccomp::ARM64,
        &[
            (198, "socket"),
            (199, "socket"),
            (425, "io_uring"),
            (81, "sync"),
            (217, "keys"),
            (218, "missing"),
            (219, "keys"),
        ],
    ),
    // The kernel has no socketcall(2) for programs of arm, which have always had the direct calls.
    (
        "arm",
        seccomp::ARM,
        &[
            (281, "socket"),
            (288, "socket"),
            (425, "io_uring"),
            (36, "sync"),
            (309, "keys"),
            (310, "missing"),
            (311, "keys"),
        ],
    ),
];

/// The filter's exceptions.
#[derive(Clone, Copy, Debug, Default)]
pub struct Exceptions<'a> {
    /// Address families that are allowed with all their protocols.
    pub families: &'a [u32],
    /// Permission to use io_uring.
    pub io_uring: bool,
    /// Permission to use keyrings by add_key(2) and keyctl(2). The kernel runs a program of the host
    /// for request_key(2), which is always refused.
    pub keys: bool,
    /// Permission to write back all file systems of the host by sync(2), which otherwise does nothing.
    pub sync: bool,
}

/// Forbids this process and its descendants these calls, with the exceptions.
///
/// A refused call for a socket has the error of a kernel without the family. The socketcall(2) of i386 creates no
/// sockets, and has the error ENOSYS.
pub fn install(exceptions: Exceptions) -> Result<()> {
    let filter = filter(exceptions, seccomp::refuse(Errno::ENOSYS));
    filter.install().context(FAILURE)
}

/// Does the same, and returns the descriptor that receives the calls of socketcall(2) which create
/// sockets.
pub fn install_with_listener(exceptions: Exceptions) -> Result<OwnedFd> {
    let filter = filter(exceptions, NOTIFY);
    filter.install_with_listener().context(FAILURE)
}

const FAILURE: &str = "can't filter system calls; the kernel needs seccomp filters";

fn filter(exceptions: Exceptions, socketcall: u32) -> Filter {
    let mut filter = Filter::new(&CALLS, seccomp::refuse(Errno::ENOSYS));
    // socket(family, type, protocol), socketpair(family, type, protocol, sockets)
    filter.place("socket");
    filter.load(ARGUMENTS[0]);
    for family in exceptions.families {
        filter.go_if_equal(*family, "allow");
    }
    for family in FAMILIES {
        filter.go_if_equal(family as u32, protocols_of(family));
    }
    filter.end(seccomp::refuse(Errno::EAFNOSUPPORT));
    filter.place("netlink");
    filter.load(ARGUMENTS[2]);
    for protocol in NETLINK_PROTOCOLS {
        filter.go_if_equal(protocol as u32, "allow");
    }
    filter.end(seccomp::refuse(Errno::EPROTONOSUPPORT));
    filter.place("inet");
    filter.load(ARGUMENTS[2]);
    if !exceptions.families.contains(&AF_SMC) {
        filter.go_if_equal(IPPROTO_SMC, "no protocol");
    }
    filter.end(ALLOW);
    filter.place("no protocol");
    filter.end(seccomp::refuse(Errno::EPROTONOSUPPORT));
    // socketcall(operation, arguments)
    filter.place("socketcall");
    filter.load(ARGUMENTS[0]);
    filter.go_if_equal(SYS_SOCKET, "hidden");
    filter.go_if_equal(SYS_SOCKETPAIR, "hidden");
    filter.end(ALLOW);
    filter.place("hidden");
    filter.end(socketcall);
    let missing = seccomp::refuse(Errno::ENOSYS);
    filter.place("io_uring");
    filter.end(if exceptions.io_uring { ALLOW } else { missing });
    filter.place("keys");
    filter.end(if exceptions.keys { ALLOW } else { missing });
    filter.place("missing");
    filter.end(missing);
    filter.place("sync");
    filter.end(if exceptions.sync { ALLOW } else { SKIP });
    filter.place("allow");
    filter.end(ALLOW);
    filter
}

/// Returns the place in the filter that decides on the protocol of a socket of this family.
fn protocols_of(family: libc::c_int) -> seccomp::Label {
    match family {
        libc::AF_NETLINK => "netlink",
        libc::AF_INET | libc::AF_INET6 => "inet",
        _ => "allow",
    }
}

#[cfg(test)]
mod tests {
    #![allow(unsafe_code)]

    use super::*;
    use crate::sys::seccomp::tests::holds_in_child;
    use crate::sys::socket;

    const AF_ALG: u32 = libc::AF_ALG as u32;
    /// A type that the kernel refuses, whether or not it has the family.
    const NO_TYPE: i32 = 0x80_0001;

    fn error(family: i32, protocol: i32) -> Option<Errno> {
        let numbers = [family, NO_TYPE, protocol];
        let errors = [
            socket::create(numbers).err(),
            socket::create_pair(numbers).err(),
        ];
        errors[0].filter(|error| Some(*error) == errors[1])
    }

    fn io_uring_error() -> Errno {
        // SAFETY: io_uring_setup(2) accesses nothing, since the parameters are at no address.
        let result = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, 0) };
        Errno::result(result).err().unwrap_or(Errno::UnknownErrno)
    }

    fn keys_errors() -> [Errno; 3] {
        let error = |number| {
            // SAFETY: the arguments are at no address, or no operation of keyctl(2).
            let result = unsafe { libc::syscall(number, 0xffff, 0, 0, 0, 0) };
            Errno::result(result).err().unwrap_or(Errno::UnknownErrno)
        };
        [libc::SYS_add_key, libc::SYS_keyctl, libc::SYS_request_key].map(error)
    }

    fn refuses_other_sockets() -> Result<bool> {
        install(Exceptions::default())?;
        let is_refused = |family: i32| error(family, 0) == Some(Errno::EAFNOSUPPORT);
        let netlink = |protocol: i32| error(libc::AF_NETLINK, protocol);
        Ok(
            (0..=45).all(|family| is_refused(family) != FAMILIES.contains(&family))
                && netlink(libc::NETLINK_ROUTE) == Some(Errno::EINVAL)
                && netlink(libc::NETLINK_XFRM) == Some(Errno::EPROTONOSUPPORT)
                && error(libc::AF_INET, 256) == Some(Errno::EPROTONOSUPPORT)
                && io_uring_error() == Errno::ENOSYS
                && keys_errors() == [Errno::ENOSYS; 3],
        )
    }

    fn makes_exceptions() -> Result<bool> {
        install(Exceptions {
            families: &[AF_ALG, AF_SMC, libc::AF_NETLINK as u32],
            io_uring: true,
            keys: true,
            sync: true,
        })?;
        let is_allowed =
            |family: i32, protocol: i32| error(family, protocol) == Some(Errno::EINVAL);
        Ok(is_allowed(libc::AF_ALG, 0)
            && is_allowed(libc::AF_NETLINK, libc::NETLINK_XFRM)
            && is_allowed(libc::AF_INET, 256)
            && !is_allowed(libc::AF_VSOCK, 0)
            && io_uring_error() != Errno::ENOSYS
            && keys_errors() == [Errno::EFAULT, Errno::EOPNOTSUPP, Errno::ENOSYS])
    }

    #[test]
    fn sockets_outside_of_the_allow_list_are_refused() {
        holds_in_child(refuses_other_sockets);
    }

    #[test]
    fn exceptions_are_allowed() {
        holds_in_child(makes_exceptions);
    }
}
