//! The BPF program that refuses connections.
//!
//! The program is a list of rules, of which the first one that matches decides.

use nspawn_common::sys::bpf::Instruction;

use crate::network::destination::Destination;

// Registers.
/// Argument of the program, a `struct bpf_sock_addr`.
const CONTEXT: u8 = 1;
/// Port of the connection.
const PORT: u8 = 3;
/// Copy of a word that is masked.
const SCRATCH: u8 = 4;
/// First of the four words of the address.
const ADDRESS: u8 = 6;

// Offsets in `struct bpf_sock_addr` (`linux/bpf.h`).
const USER_IP4: i16 = 4;
const USER_IP6: i16 = 8;
const USER_PORT: i16 = 24;

fn instruction(code: u8, target: u8, source: u8, offset: i16, value: u32) -> Instruction {
    Instruction {
        code,
        registers: target | source << 4,
        offset,
        value: i32::from_ne_bytes(value.to_ne_bytes()),
    }
}

/// Loads 32 bits at `offset` of the context.
fn load(target: u8, offset: i16) -> Instruction {
    instruction(0x61, target, CONTEXT, offset, 0)
}

fn copy(target: u8, source: u8) -> Instruction {
    instruction(0xbc, target, source, 0, 0)
}

fn and(target: u8, mask: u32) -> Instruction {
    instruction(0x54, target, 0, 0, mask)
}

/// Skips `count` instructions unless the register has the value.
fn skip_unless(register: u8, value: u32, count: usize) -> Instruction {
    let count = i16::try_from(count).unwrap_or(i16::MAX);
    instruction(0x56, register, 0, count, value)
}

/// Ends the program with the result 1, which allows the connection, or 0.
fn verdict(is_allowed: bool) -> [Instruction; 2] {
    [
        instruction(0xb7, 0, 0, 0, is_allowed.into()),
        instruction(0x95, 0, 0, 0, 0),
    ]
}

/// Returns the program for one address family.
///
/// Rules for `allowed` destinations come before those for `denied` ones. All other destinations are
/// allowed.
pub fn assemble(
    is_ipv6: bool,
    allowed: &[Destination],
    denied: &[Destination],
) -> Vec<Instruction> {
    let mut program = load_destination(is_ipv6);
    let allowed = allowed.iter().map(|destination| (destination, true));
    let denied = denied.iter().map(|destination| (destination, false));
    for (destination, is_allowed) in allowed.chain(denied) {
        if !is_ipv6 && destination.address().is_ipv6() {
            continue;
        }
        let rule = rule(is_ipv6, destination, is_allowed);
        let matches_all = rule == verdict(is_allowed);
        program.extend(rule);
        // The kernel refuses programs with unreachable instructions.
        if matches_all {
            return program;
        }
    }
    program.extend(verdict(true));
    program
}

fn load_destination(is_ipv6: bool) -> Vec<Instruction> {
    let mut program = vec![load(PORT, USER_PORT)];
    if is_ipv6 {
        for word in 0..4_u8 {
            let offset = USER_IP6 + 4 * i16::from(word);
            program.push(load(ADDRESS + word, offset));
        }
    } else {
        program.push(load(ADDRESS + 3, USER_IP4));
    }
    program
}

/// Comparison of a register, or of some of its bits, with a value.
struct Test {
    register: u8,
    mask: u32,
    value: u32,
}

/// Returns the instructions that end the program with a verdict if the destination matches.
fn rule(is_ipv6: bool, destination: &Destination, is_allowed: bool) -> Vec<Instruction> {
    let mut rule = verdict(is_allowed).to_vec();
    // A failed test skips the rest of the rule, so the rule is assembled from its end.
    for test in tests(is_ipv6, destination).into_iter().rev() {
        let mut instructions = Vec::new();
        let mut register = test.register;
        if test.mask != u32::MAX {
            register = SCRATCH;
            instructions.push(copy(SCRATCH, test.register));
            instructions.push(and(SCRATCH, test.mask));
        }
        instructions.push(skip_unless(register, test.value, rule.len()));
        instructions.extend(rule);
        rule = instructions;
    }
    rule
}

fn tests(is_ipv6: bool, destination: &Destination) -> Vec<Test> {
    let words = destination.words();
    let mut tests = Vec::new();
    for word in if is_ipv6 { 0..4_u8 } else { 3..4 } {
        let (value, mask) = words[usize::from(word)];
        if mask != 0 {
            tests.push(Test {
                register: ADDRESS + word,
                mask,
                value,
            });
        }
    }
    if let Some(port) = destination.port() {
        tests.push(Test {
            register: PORT,
            mask: u32::MAX,
            value: u32::from(port.to_be()),
        });
    }
    tests
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use super::*;

    fn destination(text: &str) -> Destination {
        Destination::parse(text).unwrap()
    }

    /// Interprets a program like the kernel.
    fn run(program: &[Instruction], address: IpAddr, port: u16) -> bool {
        let words = match address {
            IpAddr::V4(address) => [0, 0, 0, u32::from(address).to_be()],
            IpAddr::V6(address) => {
                [0, 1, 2, 3].map(|word| ((u128::from(address) >> (96 - 32 * word)) as u32).to_be())
            }
        };
        let mut registers = [0_u32; 11];
        let mut place = 0;
        loop {
            let Instruction {
                code,
                registers: both,
                offset,
                value,
            } = program[place];
            let (target, source) = (usize::from(both & 15), usize::from(both >> 4));
            place += 1;
            match code {
                0x61 => {
                    registers[target] = match offset {
                        USER_IP4 => words[3],
                        USER_PORT => u32::from(port.to_be()),
                        ip6 => words[usize::try_from((ip6 - USER_IP6) / 4).unwrap()],
                    }
                }
                0xbc => registers[target] = registers[source],
                0x54 => registers[target] &= u32::from_ne_bytes(value.to_ne_bytes()),
                0x56 if registers[target] != u32::from_ne_bytes(value.to_ne_bytes()) => {
                    place += usize::try_from(offset).unwrap()
                }
                0x56 => {}
                0xb7 => registers[target] = u32::from_ne_bytes(value.to_ne_bytes()),
                0x95 => return registers[0] == 1,
                other => panic!("unknown instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn allowed_ports_are_open_and_denied_networks_are_closed() {
        let allowed = [
            "192.0.2.1:443",
            "127.0.0.53:53",
            "[fe80::1]:53",
            "10.1.0.0/16",
        ]
        .map(destination);
        let denied = [
            "127.0.0.0/8",
            "192.0.2.1",
            "fe80::/10",
            "10.0.0.0/8",
            "2001:db8::1",
        ]
        .map(destination);
        for (address, port, is_allowed) in [
            ("192.0.2.1", 443, true),
            ("192.0.2.1", 22, false),
            ("192.0.2.2", 22, true),
            ("127.0.0.53", 53, true),
            ("127.0.0.53", 80, false),
            ("127.1.2.3", 53, false),
            ("10.1.2.3", 1, true),
            ("10.2.2.3", 1, false),
        ] {
            let address: Ipv4Addr = address.parse().unwrap();
            let four = assemble(false, &allowed, &denied);
            assert_eq!(
                run(&four, address.into(), port),
                is_allowed,
                "{address} {port}"
            );
            let six = assemble(true, &allowed, &denied);
            assert_eq!(
                run(&six, address.to_ipv6_mapped().into(), port),
                is_allowed,
                "mapped {address} {port}"
            );
        }
        for (address, port, is_allowed) in [
            ("fe80::1", 53, true),
            ("fe80::1", 54, false),
            ("febf::1", 53, false),
            ("fec0::1", 53, true),
            ("2001:db8::1", 80, false),
            ("2001:db8::2", 80, true),
        ] {
            let address: Ipv6Addr = address.parse().unwrap();
            assert_eq!(
                run(&assemble(true, &allowed, &denied), address.into(), port),
                is_allowed,
                "{address} {port}"
            );
        }
    }

    #[test]
    fn rule_for_all_addresses_ends_the_program() {
        let all = [destination("0.0.0.0/0")];
        let loads = 2;
        assert_eq!(
            assemble(false, &all, &all).len(),
            loads + verdict(true).len()
        );
        assert!(!run(
            &assemble(false, &[], &all),
            "198.51.100.1".parse().unwrap(),
            1
        ));
        assert!(run(
            &assemble(true, &[], &all),
            "2001:db8::1".parse().unwrap(),
            1
        ));
    }
}
