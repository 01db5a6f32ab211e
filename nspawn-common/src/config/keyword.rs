//! Values of options that are one of a few keywords.

use anyhow::{Result, anyhow};
use clap::ValueEnum;

/// Implements parsing and printing of a value, from a table of its variants and their keywords.
///
/// clap's derive macro would need a procedural macro, which Cargo can't build with the static C
/// library that this workspace links.
macro_rules! keywords {
    ($type:ident { $($variant:ident => $keyword:literal,)+ }) => {
        impl $type {
            /// Parses the value of the option.
            pub fn parse(word: &str) -> ::anyhow::Result<Self> {
                $crate::config::keyword::parse(word)
            }

            /// Returns the keyword of the value.
            #[must_use]
            pub fn keyword(self) -> &'static str {
                match self {
                    $(Self::$variant => $keyword,)+
                }
            }
        }

        impl ::clap::ValueEnum for $type {
            fn value_variants<'a>() -> &'a [Self] {
                &[$(Self::$variant),+]
            }

            fn to_possible_value(&self) -> Option<::clap::builder::PossibleValue> {
                Some(::clap::builder::PossibleValue::new(self.keyword()))
            }
        }

        impl ::std::fmt::Display for $type {
            fn fmt(&self, out: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                out.write_str(self.keyword())
            }
        }
    };
}

pub(super) use keywords;

/// Returns the value that a keyword stands for, for example `systemd` of `--init=`.
pub(super) fn parse<T: ValueEnum>(word: &str) -> Result<T> {
    T::from_str(word, false).map_err(|_| {
        let values = T::value_variants().iter();
        let words: Vec<_> = values
            .filter_map(ValueEnum::to_possible_value)
            .map(|value| value.get_name().to_owned())
            .collect();
        anyhow!("{word:?} must be one of {}", words.join(", "))
    })
}

/// Checks that a type parses exactly the keywords that it prints. `bad` are other words.
#[cfg(test)]
pub(super) fn check<T>(bad: &[&str])
where
    T: ValueEnum + PartialEq + std::fmt::Debug + std::fmt::Display,
{
    for value in T::value_variants() {
        assert_eq!(parse::<T>(&value.to_string()).unwrap(), *value);
    }
    for word in bad {
        assert!(parse::<T>(word).is_err(), "{word}");
    }
}
