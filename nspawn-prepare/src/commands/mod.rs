//! One module for each public command and for the form that makes a service.

pub mod prepare;
pub mod service;
