//! Services of GitLab jobs, each of which is a machine of its own.
//!
//! | module | contents |
//! | --- | --- |
//! | [`spawn`] | creates the machines, each in a process of its own |
//! | [`network`] | the private network of a job and its services |
//! | [`etc_hosts`] | the names of the services |
//! | [`connect`] | connects the running machines |
//! | [`readiness`] | starts the services' commands, and waits for their ports |
//! | [`sockets`] | listening sockets of a machine |

pub mod connect;
pub mod etc_hosts;
pub mod network;
pub mod readiness;
mod sockets;
pub mod spawn;
