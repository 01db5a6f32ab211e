//! The options on its command line: `--name value` or `--name=value`, some of them more than once.

use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail};

/// The options of one call.
#[derive(Debug)]
pub struct Flags(Vec<(String, String)>);

impl Flags {
    /// Reads those that have a value, `valued`, and those that have none, `bare`.
    pub fn parse(words: &[String], valued: &[&str], bare: &[&str]) -> Result<Self> {
        let mut all = Vec::new();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let option = word
                .strip_prefix("--")
                .with_context(|| format!("{word:?} is no option"))?;
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

    /// All values of one.
    pub fn all(&self, name: &str) -> Vec<String> {
        self.0
            .iter()
            .filter(|(other, _)| other == name)
            .map(|(_, value)| value.clone())
            .collect()
    }

    /// Whether one without a value is given.
    pub fn is_given(&self, name: &str) -> bool {
        self.all(name).last().is_some_and(|value| value == "true")
    }

    /// The value of one that must be there.
    pub fn get(&self, name: &str) -> Result<String> {
        self.all(name)
            .pop()
            .with_context(|| format!("--{name} is missing"))
    }

    /// The value of one that need not be there.
    pub fn value<T: FromStr>(&self, name: &str, default: T) -> Result<T> {
        match self.all(name).pop() {
            Some(text) => text
                .parse()
                .map_err(|_| anyhow!("--{name}={text}: a bad value")),
            None => Ok(default),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Flags> {
        let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
        Flags::parse(&words, &["path", "id"], &["untracked"])
    }

    #[test]
    fn options_have_values_and_may_be_repeated() {
        let flags = parse(&["--path", "--a", "--untracked", "--path=b=c", "--id", "7"]).unwrap();
        assert_eq!(flags.all("path"), ["--a", "b=c"]);
        assert_eq!(
            (flags.value("id", 0).unwrap(), flags.value("x", 3).unwrap()),
            (7, 3)
        );
        assert!(flags.is_given("untracked") && flags.get("x").is_err());
        assert!(parse(&["--untracked=false"]).is_ok_and(|flags| !flags.is_given("untracked")));
    }

    #[test]
    fn what_the_real_one_would_not_take_is_refused() {
        for words in [&["--pathes", "a"][..], &["a"], &["--path"], &["-path", "a"]] {
            assert!(parse(words).is_err(), "{words:?}");
        }
        assert!(parse(&["--id", "x"]).unwrap().value("id", 0).is_err());
    }
}
