//! Listening TCP sockets of a machine, as the kernel lists them (proc_pid_net(5)).

use std::fs::File;
use std::io::Read;

/// Number of bytes that are read of the table of sockets at most.
const MAX_TABLE: u64 = 4 << 20;
/// State of a listening socket.
const LISTENING: &str = "0A";
/// Last two digits of a loopback address of IPv4. The kernel prints the bytes in reverse order.
const LOOPBACK_IPV4_END: &str = "7F";
/// Beginning of an IPv4 address in the mapped form of IPv6.
const MAPPED_PREFIX: &str = "0000000000000000FFFF0000";
/// Loopback address of IPv6.
const LOOPBACK_IPV6: &str = "00000000000000000000000001000000";

/// Returns whether a socket of the machine listens where other machines reach it.
///
/// `leader` is the PID 1 of the machine. Without `port`, any port counts.
pub fn listens(leader: u32, port: Option<u16>) -> bool {
    ["tcp", "tcp6"]
        .iter()
        .filter_map(|kind| read_table(leader, kind))
        .any(|table| {
            table
                .lines()
                .skip(1)
                .any(|socket| is_reachable(socket, port))
        })
}

fn read_table(leader: u32, kind: &str) -> Option<String> {
    let mut table = String::new();
    let file = File::open(format!("/proc/{leader}/net/{kind}")).ok()?;
    file.take(MAX_TABLE).read_to_string(&mut table).ok()?;
    Some(table)
}

/// Returns whether a line of the table is a socket that listens on `port`.
///
/// A socket that listens on the loopback does not count. Without `port`, any port does.
fn is_reachable(socket: &str, port: Option<u16>) -> bool {
    let fields: Vec<_> = socket.split_whitespace().take(4).collect();
    let [_, local, _, state] = fields[..] else {
        return false;
    };
    let Some((address, number)) = local.split_once(':') else {
        return false;
    };
    let has_port = port.is_none_or(|port| u16::from_str_radix(number, 16) == Ok(port));
    state == LISTENING && !is_loopback(address) && has_port
}

fn is_loopback(address: &str) -> bool {
    let ipv4 = address.strip_prefix(MAPPED_PREFIX).unwrap_or(address);
    address == LOOPBACK_IPV6 || (ipv4.len() == 8 && ipv4.ends_with(LOOPBACK_IPV4_END))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_reachable_listening_sockets_count() {
        let socket = |local: &str, state: &str| {
            format!("   0: {local} 00000000:0000 {state} 00000000:00000000 00:0 0 0 1")
        };
        for (local, state, port, expected) in [
            ("00000000:1538", "0A", Some(5432), true),
            ("00000000:1538", "0A", None, true),
            ("00000000:1538", "0A", Some(80), false),
            ("00000000:1538", "01", Some(5432), false),
            ("0100007F:1538", "0A", None, false),
            (
                "00000000000000000000000000000000:1538",
                "0A",
                Some(5432),
                true,
            ),
            (
                "00000000000000000000000001000000:1538",
                "0A",
                Some(5432),
                false,
            ),
            (
                "0000000000000000FFFF00000100007F:1538",
                "0A",
                Some(5432),
                false,
            ),
            (
                "0000000000000000FFFF0000011200C6:1538",
                "0A",
                Some(5432),
                true,
            ),
        ] {
            assert_eq!(
                is_reachable(&socket(local, state), port),
                expected,
                "{local} {state} {port:?}"
            );
        }
        assert!(!is_reachable("", None) && !is_reachable("1 2 3 0A", None));
    }
}
