//! Bad input to the programs.
//!
//! Each case yields one clear line and the documented exit status, leaves nothing behind, and does
//! not touch machines or files of others.

mod images;
mod obstacles;
mod options;
