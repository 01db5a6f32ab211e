//! Values of options: plain data that parses and prints itself.

pub mod choice;
pub mod modes;
pub mod network;
