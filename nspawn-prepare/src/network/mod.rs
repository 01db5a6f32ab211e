//! A machine's network: pasta, addresses and routes, and the filter that protects the host.
//!
//! | module | contents |
//! | --- | --- |
//! | [`pasta`] | the unit that connects a machine to the host's network |
//! | [`uplink`] | the host's connection to the outside, and the machine's addresses behind it |
//! | [`host_routes`] | parsers of `/proc/net` |
//! | [`resolvers`] | the host's DNS resolvers, and the machine's resolv.conf(5) |
//! | [`egress`] | destinations that are closed to machines |
//! | [`filter`] | the BPF program that refuses connections |
//! | [`destination`] | addresses and networks with ports |

pub mod destination;
pub mod egress;
mod filter;
mod host_routes;
pub mod pasta;
pub mod resolvers;
pub mod uplink;
