//! The variables of a job, as its response has them.

use serde_json::Value;

/// Variables, of which a later one of a name wins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Variables {
    all: Vec<Variable>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Variable {
    name: String,
    value: String,
    /// Whether other programs than the job's own may be told it.
    is_public: bool,
    /// Whether a `$` in it is just that.
    is_raw: bool,
}

impl Variables {
    /// Those of a list in a job response; what is no variable is left out.
    pub fn of_response(list: &Value) -> Self {
        let read = |entry: &Value| {
            let flag = |name: &str| entry[name].as_bool().unwrap_or(false);
            Some(Variable {
                name: entry["key"]
                    .as_str()
                    .filter(|name| is_name(name))?
                    .to_owned(),
                value: entry["value"].as_str()?.to_owned(),
                is_public: flag("public") && !flag("file"),
                is_raw: flag("raw"),
            })
        };
        Self {
            all: list
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(read)
                .collect(),
        }
    }

    /// Those of an object in `CI_JOB_SERVICES`, whose values are expanded already.
    pub fn of_object(object: &Value) -> Self {
        let read = |(name, value): (&String, &Value)| {
            let (name, value) = (name.clone(), value.as_str()?.to_owned());
            is_name(&name).then_some(Variable {
                name,
                value,
                is_public: true,
                is_raw: true,
            })
        };
        Self {
            all: object
                .as_object()
                .into_iter()
                .flatten()
                .filter_map(read)
                .collect(),
        }
    }

    /// `text` with `$NAME` and `${NAME}` replaced by the variables' values, and `$$` by `$`.
    pub fn expand(&self, text: &str) -> String {
        let mut done = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('$') {
            done += before;
            let (value, left) = self.reference(after);
            done += &value;
            rest = left;
        }
        done + rest
    }

    /// `NAME=VALUE` of those that anybody may be told, values expanded, and then all of `more`.
    pub fn told_with(&self, more: &Self) -> Vec<String> {
        let everything = Self {
            all: self.all.iter().chain(&more.all).cloned().collect(),
        };
        let value = |variable: &Variable| match variable.is_raw {
            true => variable.value.clone(),
            false => everything.expand(&variable.value),
        };
        let told = self
            .all
            .iter()
            .filter(|variable| variable.is_public)
            .chain(&more.all);
        told.map(|variable| format!("{}={}", variable.name, value(variable)))
            .collect()
    }

    // What stands after a `$`: its value, and what comes after it.
    fn reference<'a>(&self, text: &'a str) -> (String, &'a str) {
        if let Some(rest) = text.strip_prefix('$') {
            return ("$".to_owned(), rest);
        }
        if let Some((name, rest)) = text.strip_prefix('{').and_then(|text| text.split_once('}')) {
            return (self.value(name), rest);
        }
        let end = text
            .find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
            .unwrap_or(text.len());
        match text.split_at(end) {
            ("", _) => ("$".to_owned(), text),
            (name, rest) => (self.value(name), rest),
        }
    }

    fn value(&self, name: &str) -> String {
        let found = self.all.iter().rev().find(|variable| variable.name == name);
        found
            .map(|variable| variable.value.clone())
            .unwrap_or_default()
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0'])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn variables() -> Variables {
        Variables::of_response(&json!([
            { "key": "NAME", "value": "old", "public": true },
            { "key": "NAME", "value": "db", "public": true },
            { "key": "TOKEN", "value": "secret", "public": false },
            { "key": "URL", "value": "x://${NAME}/$TOKEN", "public": true },
            { "key": "RAW", "value": "$NAME", "public": true, "raw": true },
            { "key": "FILE", "value": "text", "public": true, "file": true },
            { "key": "", "value": "x" }, { "key": 7 }, "x",
        ]))
    }

    #[test]
    fn references_are_replaced() {
        for (text, expanded) in [
            ("$NAME:1", "db:1"),
            ("${NAME}x", "dbx"),
            ("a$$b", "a$b"),
            ("$", "$"),
            ("$-${", "$-${"),
            ("$NONE.", "."),
        ] {
            assert_eq!(variables().expand(text), expanded);
        }
    }

    #[test]
    fn others_are_told_what_is_public() {
        let own = Variables::of_response(
            &json!([{ "key": "OWN", "value": "$NAME-$OWN", "public": false }]),
        );
        let told = variables().told_with(&own);
        assert_eq!(
            told,
            [
                "NAME=old",
                "NAME=db",
                "URL=x://db/secret",
                "RAW=$NAME",
                "OWN=db-$NAME-$OWN"
            ]
        );
        let own = Variables::of_object(&json!({ "A": "$B", "=": "x", "C": 1 }));
        assert_eq!(Variables::default().told_with(&own), ["A=$B"]);
    }
}
