//! Options of the command line: `--name value` or `--name=value`, some of which may be repeated.

use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail};

/// The options of one command line.
#[derive(Debug)]
pub struct Options(Vec<(String, String)>);

impl Options {
    /// Parses options, of which those in `valued` have a value, and those in `bare` have none.
    pub fn parse(words: &[String], valued: &[&str], bare: &[&str]) -> Result<Self> {
        let mut all = Vec::new();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let option = word
                .strip_prefix("--")
                .with_context(|| format!("{word:?} is not an option"))?;
            let (name, value) = option
                .split_once('=')
                .map_or((option, None), |(name, value)| (name, Some(value)));
            let value = match value {
                None if bare.contains(&name) => "true",
                None if valued.contains(&name) => words
                    .next()
                    .with_context(|| format!("--{name} needs a value"))?,
                Some(value) if valued.contains(&name) || bare.contains(&name) => value,
                _ => bail!("--{name}: the stand-in has no such option"),
            };
            all.push((name.to_owned(), value.to_owned()));
        }
        Ok(Self(all))
    }

    /// Returns all values of an option.
    pub fn all(&self, name: &str) -> Vec<String> {
        self.0
            .iter()
            .filter(|(other, _)| other == name)
            .map(|(_, value)| value.clone())
            .collect()
    }

    /// Returns whether an option without a value is given.
    pub fn is_given(&self, name: &str) -> bool {
        self.all(name).last().is_some_and(|value| value == "true")
    }

    /// Returns the value of an option that is necessary.
    pub fn get(&self, name: &str) -> Result<String> {
        self.all(name)
            .pop()
            .with_context(|| format!("--{name} is missing"))
    }

    /// Returns the value of an option, or a default.
    pub fn value<T: FromStr>(&self, name: &str, default: T) -> Result<T> {
        match self.all(name).pop() {
            Some(text) => text
                .parse()
                .map_err(|_| anyhow!("--{name}={text}: the value is invalid")),
            None => Ok(default),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Options> {
        let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
        Options::parse(&words, &["path", "id"], &["untracked"])
    }

    #[test]
    fn options_have_values_and_may_be_repeated() {
        let options = parse(&["--path", "--a", "--untracked", "--path=b=c", "--id", "7"]).unwrap();
        assert_eq!(options.all("path"), ["--a", "b=c"]);
        assert_eq!(
            (
                options.value("id", 0).unwrap(),
                options.value("x", 3).unwrap()
            ),
            (7, 3)
        );
        assert!(options.is_given("untracked") && options.get("x").is_err());
        assert!(parse(&["--untracked=false"]).is_ok_and(|options| !options.is_given("untracked")));
    }

    #[test]
    fn invalid_options_are_refused() {
        for words in [&["--pathes", "a"][..], &["a"], &["--path"], &["-path", "a"]] {
            assert!(parse(words).is_err(), "{words:?}");
        }
        assert!(parse(&["--id", "x"]).unwrap().value("id", 0).is_err());
    }
}
