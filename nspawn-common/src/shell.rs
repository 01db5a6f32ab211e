//! Shell quoting and splitting of byte strings.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use anyhow::{Context, Result};

/// Splits text into shell words.
///
/// Quotes, backslashes and `#` comments have their meaning, all other characters are literal.
pub fn split(text: &OsStr) -> Result<Vec<OsString>> {
    let words = shell_words::split(&widen(text)).context("a quote is not closed")?;
    Ok(words.iter().map(|word| narrow(word)).collect())
}

/// Joins arguments to text that a shell splits into the same arguments.
pub fn join<Word: AsRef<OsStr>>(words: impl IntoIterator<Item = Word>) -> OsString {
    let words = words.into_iter().map(|word| widen(word.as_ref()));
    narrow(&shell_words::join(words))
}

// Converts each byte to the character with the same number, since shell-words only supports text.
// All characters that are special to a shell are ASCII, so quoting works the same.
fn widen(bytes: &OsStr) -> String {
    bytes.as_bytes().iter().copied().map(char::from).collect()
}

// Converts the result of `widen` back.
fn narrow(text: &str) -> OsString {
    OsString::from_vec(text.chars().map(|c| c as u8).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joined_words_are_split_into_the_same_words() {
        let words = [
            &b"a b"[..],
            b"",
            b"'\"$",
            b"\xff\xfe",
            b"# no comment",
            b"x\ny",
            "ä".as_bytes(),
        ];
        let words = words.map(|word| OsStr::from_bytes(word).to_owned());
        assert_eq!(split(&join(&words)).unwrap(), words);
    }

    #[test]
    fn comments_are_skipped_and_open_quotes_refused() {
        let text = OsStr::new("--bind=/a # the cache\n# nothing\n--setenv 'X=1 2'");
        assert_eq!(split(text).unwrap(), ["--bind=/a", "--setenv", "X=1 2"]);
        assert!(split(OsStr::new("'open")).is_err());
    }
}
