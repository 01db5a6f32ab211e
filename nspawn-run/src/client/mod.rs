//! The host side of a command: the session with the agent, its output, and the reason if the machine goes away.

pub mod machine_exit;
pub mod oom;
pub mod session;
pub mod stdio;
pub mod task_limit;
pub mod terminal;
