//! Commands in a machine that `nspawn-run` runs.
//!
//! | module | covers |
//! | --- | --- |
//! | [`arguments`] | arguments, environment, user and directory |
//! | [`streams`] | stdin, stdout and stderr |
//! | [`exit_status`] | exit statuses, and errors before the command runs |
//! | [`termination`] | signals, and the end of all processes of a command |
//! | [`pty`] | commands on a pty |

mod arguments;
mod exit_status;
mod pty;
mod streams;
mod termination;

/// Shell command that succeeds if a process named `sleep` lives.
///
/// A zombie does not count: it only waits for its parent, the machine's PID 1.
const LIVING_SLEEP: &str = "ps -C sleep -o stat= | grep -v '^Z'";
/// Shell command that succeeds once no other process named `sleep` is left.
const NO_SLEEP: &str =
    "for i in $(seq 100); do pgrep -x sleep >/dev/null || exit 0; sleep 0.05; done; exit 1";
