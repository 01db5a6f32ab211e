//! Options whose values are a few words, by tables of these.

use anyhow::{Context, Result};

/// The words of a table.
pub const fn words<T, const N: usize>(names: &[(&'static str, T); N]) -> [&'static str; N] {
    let mut words = [""; N];
    let mut place = 0;
    while place < N {
        words[place] = names[place].0;
        place += 1;
    }
    words
}

/// What a word stands for.
///
/// # Errors
/// It is none of the table.
pub fn value_of<T: Copy>(word: &str, names: &[(&'static str, T)]) -> Result<T> {
    let found = names
        .iter()
        .find(|(name, _)| *name == word)
        .map(|(_, value)| *value);
    found.with_context(|| {
        let words: Vec<_> = names.iter().map(|(name, _)| *name).collect();
        format!("{word:?} is none of {}", words.join(", "))
    })
}

/// The word for a value.
pub fn word_of<T: PartialEq>(value: &T, names: &[(&'static str, T)]) -> &'static str {
    names
        .iter()
        .find(|(_, named)| named == value)
        .map_or("", |(name, _)| name)
}
