//! Machines from nothing to nothing.
