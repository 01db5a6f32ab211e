//! Values of options: plain data that parses and prints itself.

pub mod address_family;
pub mod init;
mod keyword;
pub mod layer;
pub mod network;
pub mod private_users;
pub mod retention;
