//! The host's side of a command: its session with the agent, and its streams.
//!
//! | module | contents |
//! | --- | --- |
//! | [`session`] | a command from its request to its result |
//! | [`connection`] | messages between the host and the agent while a command runs |
//! | [`stdio`], [`transfer`] | stdin, stdout and stderr |
//! | [`terminal`] | the caller's terminal |
//! | [`machine_exit`] | the reason why a machine ended |
//! | [`oom`], [`task_limit`] | limits on memory and processes that a machine has reached |

pub mod connection;
pub mod machine_exit;
pub mod oom;
pub mod session;
pub mod stdio;
pub mod task_limit;
pub mod terminal;
pub mod transfer;
