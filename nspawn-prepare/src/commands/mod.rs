//! The public command, and the internal forms that create machines.

pub mod prepare;
pub mod record;
pub mod service;
pub mod standby;
