//! Sockets that reach modules of the kernel which all machines share, by all system calls that
//! create sockets.
//!
//! The suite itself is the probe: it runs on the host and in machines, tries all families, and
//! prints which of them the kernel would create.

use std::cell::LazyCell;
use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use nix::libc;
use nspawn_tests::{Machine, finish};

use crate::suite::{Control, Fixture, Suite, machine};

/// Argument with which the suite is the probe.
pub const PROBE: &str = "--probe-sockets";
/// Place of the probe in a machine.
const PROGRAM: &str = "/root/probe-sockets";

const AF_NETLINK: i32 = libc::AF_NETLINK;
const AF_VSOCK: i32 = libc::AF_VSOCK;
/// Families of every machine: AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_PACKET.
const USUAL: [i32; 5] = [1, 2, 10, 16, 17];
/// Protocols of AF_NETLINK of every machine.
const USUAL_NETLINK: [i32; 6] = [0, 2, 4, 12, 15, 16];
/// Protocol of AF_INET for sockets of AF_SMC.
const IPPROTO_SMC: i32 = 256;
/// Bits that no type of a socket has. The kernel looks at them first of all, so that the error
/// EINVAL is that of a call which no filter has refused, also if the kernel lacks the family.
const NO_TYPE: i32 = 0x80_0001;
/// Errors of calls that a filter has refused.
const REFUSED: [i32; 3] = [libc::EAFNOSUPPORT, libc::EPROTONOSUPPORT, libc::ENOSYS];

/// A system call that creates a socket. It returns a descriptor, or the negative number of an error.
type Call = fn([i32; 3]) -> i32;

/// Result of a probe for a system call.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    /// Families for which the kernel was asked.
    families: Vec<i32>,
    /// Protocols of AF_NETLINK for which the kernel was asked.
    netlink: Vec<i32>,
    /// True if the kernel was asked for AF_SMC by AF_INET.
    smc: bool,
    /// True if a socket of AF_VSOCK was created.
    vsock: bool,
}

pub fn rows(suite: &mut Suite, fixture: &Fixture) {
    let host = LazyCell::new(probe_host);
    let inside = LazyCell::new(|| probe(&fixture.attacker));
    for (call, _) in calls() {
        suite.row(
            &format!("sockets of other address families: {call}"),
            || refuses_families(&host[call], &inside[call], &open_families(call)),
        );
        suite.row(
            &format!("NETLINK_XFRM and AF_SMC by protocols: {call}"),
            || refuses_protocols(&host[call], &inside[call], &open_protocols(call)),
        );
    }
    // Without the option, only machines of images with programs for i386 have the process.
    let machine = LazyCell::new(|| machine(&["--system-call-filter=socketcall"]));
    let served = LazyCell::new(|| probe(&machine));
    for (call, _) in calls()
        .iter()
        .filter(|(call, _)| call.starts_with("socketcall"))
    {
        suite.row(
            &format!("the same by the process for 32-bit programs: {call}"),
            || {
                refuses_families(&host[*call], &served[*call], &USUAL);
                refuses_protocols(&host[*call], &served[*call], &USUAL_NETLINK)
            },
        );
    }
}

/// Returns the families for which a call reaches the kernel in a machine.
///
/// Calls that hide the family from filters reach it for none.
fn open_families(call: &str) -> Vec<i32> {
    if hides_family(call) {
        Vec::new()
    } else {
        USUAL.into()
    }
}

/// Returns the protocols of AF_NETLINK for which a call reaches the kernel in a machine.
fn open_protocols(call: &str) -> Vec<i32> {
    if hides_family(call) {
        Vec::new()
    } else {
        USUAL_NETLINK.into()
    }
}

fn hides_family(call: &str) -> bool {
    call.starts_with("socketcall") || call.starts_with("io_uring")
}

fn refuses_families(host: &Found, inside: &Found, open: &[i32]) -> Control {
    // The kernel may lack the call, as most do for x32.
    if host.families.is_empty() {
        assert_eq!(inside, host);
        return Control::Absent;
    }
    assert_eq!(host.families, (0..=45).collect::<Vec<_>>());
    assert_eq!(inside.families, open);
    assert!(!inside.vsock, "a socket of AF_VSOCK was created");
    Control::Host
}

fn refuses_protocols(host: &Found, inside: &Found, open: &[i32]) -> Control {
    if host.families.is_empty() {
        return Control::Absent;
    }
    assert!(host.smc);
    assert_eq!(host.netlink, (0..=22).collect::<Vec<_>>());
    assert_eq!(inside.netlink, open);
    assert!(!inside.smc);
    Control::Host
}

fn probe_host() -> BTreeMap<String, Found> {
    let program = std::env::current_exe().unwrap();
    parse(
        &finish(Command::new(program).arg(PROBE), b"")
            .expect(0)
            .out(),
    )
}

fn probe(machine: &Machine) -> BTreeMap<String, Found> {
    let program = fs::read("/proc/self/exe").unwrap();
    let copy = format!("cat >{PROGRAM} && chmod +x {PROGRAM}");
    finish(&mut machine.command(["sh", "-c", &copy]), &program).expect(0);
    parse(
        &finish(&mut machine.command([PROGRAM, PROBE]), b"")
            .expect(0)
            .out(),
    )
}

/// Prints the result of all calls, a line for each.
pub fn print() {
    for (name, call) in calls() {
        let found = try_all(call);
        let list = |numbers: &[i32]| {
            let words: Vec<_> = numbers.iter().map(i32::to_string).collect();
            words.join(",")
        };
        let (families, netlink) = (list(&found.families), list(&found.netlink));
        println!("{name}:{families}:{netlink}:{}:{}", found.smc, found.vsock);
    }
}

fn parse(output: &str) -> BTreeMap<String, Found> {
    let numbers = |word: &str| {
        let words = word.split(',').filter(|number| !number.is_empty());
        words.map(|number| number.parse().unwrap()).collect()
    };
    let entry = |line: &str| {
        let words: Vec<_> = line.split(':').collect();
        let found = Found {
            families: numbers(words[1]),
            netlink: numbers(words[2]),
            smc: words[3] == "true",
            vsock: words[4] == "true",
        };
        (words[0].to_owned(), found)
    };
    output.lines().map(entry).collect()
}

fn try_all(call: Call) -> Found {
    let is_asked = |family: i32, protocol: i32| {
        let result = call([family, NO_TYPE, protocol]);
        assert!(result < 0, "a socket of type {NO_TYPE} was created");
        !REFUSED.contains(&-result)
    };
    Found {
        families: (0..=45).filter(|family| is_asked(*family, 0)).collect(),
        netlink: (0..=22)
            .filter(|number| is_asked(AF_NETLINK, *number))
            .collect(),
        smc: is_asked(libc::AF_INET, IPPROTO_SMC),
        vsock: call([AF_VSOCK, libc::SOCK_STREAM, 0]) >= 0,
    }
}

fn calls() -> Vec<(&'static str, Call)> {
    let mut calls: Vec<(&str, Call)> = vec![
        ("socket", |words| direct(libc::SYS_socket, words)),
        ("socketpair", |words| direct(libc::SYS_socketpair, words)),
        ("io_uring", uring::socket),
    ];
    #[cfg(target_arch = "x86_64")]
    calls.extend(i386::calls());
    calls
}

fn direct(number: libc::c_long, words: [i32; 3]) -> i32 {
    let mut pair = [0; 2];
    // SAFETY: socket(2) takes three integers, and socketpair(2) writes two as well.
    let result = unsafe { libc::syscall(number, words[0], words[1], words[2], pair.as_mut_ptr()) };
    if result < 0 { -errno() } else { result as i32 }
}

fn errno() -> i32 {
    std::io::Error::last_os_error()
        .raw_os_error()
        .unwrap_or_default()
}

/// The other interfaces of system calls on x86-64.
#[cfg(target_arch = "x86_64")]
mod i386 {
    use std::arch::asm;

    use nix::libc;

    use super::{Call, direct};

    const X32: libc::c_long = 0x4000_0000;

    pub fn calls() -> [(&'static str, Call); 6] {
        [
            ("socket on x32", |words| {
                direct(libc::SYS_socket | X32, words)
            }),
            ("socketpair on x32", |words| {
                direct(libc::SYS_socketpair | X32, words)
            }),
            ("socket on i386", |words| call(359, words)),
            ("socketpair on i386", |words| call(360, words)),
            ("socketcall on i386", |words| socketcall(1, words)),
            ("socketcall for a pair on i386", |words| {
                socketcall(8, words)
            }),
        ]
    }

    fn call(number: u32, words: [i32; 3]) -> i32 {
        interrupt(number, words.map(|word| word as u32), low_memory())
    }

    fn socketcall(operation: u32, words: [i32; 3]) -> i32 {
        let memory = low_memory();
        // SAFETY: the page is writable, and longer than these words. Nothing else uses it.
        unsafe {
            let place = memory as usize as *mut i32;
            place.cast::<[i32; 3]>().write(words);
            place.add(3).cast::<u32>().write(memory + 64);
        }
        interrupt(102, [operation, memory, 0], 0)
    }

    /// Returns the address of a page that a pointer of 32 bits reaches.
    fn low_memory() -> u32 {
        // SAFETY: the mapping is a new one.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                4096,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT,
                -1,
                0,
            )
        };
        assert_ne!(page, libc::MAP_FAILED);
        u32::try_from(page as usize).unwrap()
    }

    fn interrupt(number: u32, words: [u32; 3], fourth: u32) -> i32 {
        let result: u64;
        // SAFETY: the calls take integers, and write to the page of `low_memory` only. The compiler
        // reserves rbx, which is therefore exchanged.
        unsafe {
            asm!(
                "xchg {first}, rbx",
                "int 0x80",
                "xchg {first}, rbx",
                first = inout(reg) u64::from(words[0]) => _,
                inlateout("rax") u64::from(number) => result,
                in("rcx") u64::from(words[1]),
                in("rdx") u64::from(words[2]),
                in("rsi") u64::from(fourth),
                out("r8") _,
                out("r9") _,
                out("r10") _,
                out("r11") _,
            );
        }
        result as i32
    }
}

/// IORING_OP_SOCKET of io_uring (linux/io_uring.h).
mod uring {
    use std::ptr;
    use std::sync::atomic::{AtomicU32, Ordering};

    use nix::libc;

    use super::errno;

    const IORING_OP_SOCKET: u8 = 45;
    const IORING_ENTER_GETEVENTS: u32 = 1;
    const OFFSET_SUBMISSIONS: i64 = 0;
    const OFFSET_COMPLETIONS: i64 = 0x800_0000;
    const OFFSET_ENTRIES: i64 = 0x1000_0000;
    const RING_SIZE: usize = 4096;

    /// Creates a socket by a ring of its own.
    pub fn socket([family, kind, protocol]: [i32; 3]) -> i32 {
        // struct io_uring_params
        let mut parameters = [0_u32; 30];
        // SAFETY: io_uring_setup(2) accesses one structure of this size.
        let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) };
        if ring < 0 {
            return -errno();
        }
        let ring = ring as i32;
        let submissions = map(ring, OFFSET_SUBMISSIONS);
        let completions = map(ring, OFFSET_COMPLETIONS);
        let entries = map(ring, OFFSET_ENTRIES);
        // Offsets of the rings: `sq_off.tail`, `sq_off.array`, `cq_off.cqes`.
        let (tail, array) = (parameters[11] as usize, parameters[16] as usize);
        let results = parameters[25] as usize;
        // SAFETY: the offsets lie in the mappings, whose first entry this process owns until the
        // call below.
        let result = unsafe {
            entries.write(IORING_OP_SOCKET);
            entries.add(4).cast::<i32>().write(family);
            entries.add(8).cast::<u64>().write(kind as u64);
            entries.add(24).cast::<i32>().write(protocol);
            submissions.add(array).cast::<u32>().write(0);
            let tail = AtomicU32::from_ptr(submissions.add(tail).cast());
            tail.store(1, Ordering::Release);
            let number = libc::SYS_io_uring_enter;
            let done = libc::syscall(number, ring, 1, 1, IORING_ENTER_GETEVENTS, 0, 0);
            assert_eq!(done, 1, "{}", std::io::Error::last_os_error());
            completions.add(results + 8).cast::<i32>().read_volatile()
        };
        // SAFETY: nothing else uses the mappings and the descriptor.
        unsafe {
            for mapping in [submissions, completions, entries] {
                libc::munmap(mapping.cast(), RING_SIZE);
            }
            libc::close(ring);
        }
        result
    }

    fn map(ring: i32, offset: i64) -> *mut u8 {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the mapping is a new one.
        let mapping = unsafe {
            libc::mmap(
                ptr::null_mut(),
                RING_SIZE,
                protection,
                libc::MAP_SHARED,
                ring,
                offset,
            )
        };
        assert_ne!(
            mapping,
            libc::MAP_FAILED,
            "{}",
            std::io::Error::last_os_error()
        );
        mapping.cast()
    }
}
