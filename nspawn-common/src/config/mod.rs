//! Values of options: plain data that parses and prints itself.

use anyhow::{Result, anyhow};
use clap::ValueEnum;

pub mod init;
pub mod layer;
pub mod network;
pub mod private_users;
pub mod retention;

/// Returns the value that an option's keyword stands for, for example `systemd` of `--init=`.
fn parse_keyword<T: ValueEnum>(word: &str) -> Result<T> {
    T::from_str(word, false).map_err(|_| {
        let values = T::value_variants().iter();
        let words: Vec<_> = values
            .filter_map(ValueEnum::to_possible_value)
            .map(|value| value.get_name().to_owned())
            .collect();
        anyhow!("{word:?} must be one of {}", words.join(", "))
    })
}
