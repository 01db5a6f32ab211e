//! Shell quoting of arguments that are bytes, not text.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use anyhow::{Context, Result};

/// Splits shell words: quotes, backslashes and `#` comments, nothing else is special.
///
/// # Errors
/// An unclosed quote.
pub fn split(text: &OsStr) -> Result<Vec<OsString>> {
    let words = shell_words::split(&widen(text)).context("a quote is not closed")?;
    Ok(words.iter().map(|word| narrow(word)).collect())
}

/// Joins arguments so that a shell takes them apart again.
#[must_use]
pub fn join<Word: AsRef<OsStr>>(words: impl IntoIterator<Item = Word>) -> OsString {
    narrow(&shell_words::join(
        words.into_iter().map(|word| widen(word.as_ref())),
    ))
}

// shell-words knows only text. Every byte becomes the character of the same number and back:
// all that is special to a shell is ASCII, so nothing is lost or mistaken.
fn widen(bytes: &OsStr) -> String {
    bytes.as_bytes().iter().copied().map(char::from).collect()
}

fn narrow(text: &str) -> OsString {
    OsString::from_vec(text.chars().map(|c| c as u8).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_joined_splits_again() {
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
    fn comments_and_lines() {
        let text = OsStr::new("--bind=/a # the cache\n# nothing\n--setenv 'X=1 2'");
        assert_eq!(split(text).unwrap(), ["--bind=/a", "--setenv", "X=1 2"]);
        assert!(split(OsStr::new("'open")).is_err());
    }
}
