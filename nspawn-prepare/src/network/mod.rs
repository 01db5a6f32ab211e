//! A machine's network: pasta, addresses and routes, and the filter that protects the host.

pub mod egress;
pub mod pasta;
pub mod resolv_conf;
pub mod uplink;
