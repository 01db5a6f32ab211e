//! Variables of a job, as its response contains them.

use serde_json::Value;

/// List of variables. A later variable overrides an earlier one of the same name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Variables {
    all: Vec<Variable>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Variable {
    name: String,
    value: String,
    /// True if the services of the job may see the variable too.
    is_public: bool,
    /// True if references in the value are not expanded.
    is_raw: bool,
}

impl Variables {
    /// Reads the variables of a list in a job response. Malformed entries are left out.
    pub fn from_list(list: &Value) -> Self {
        let entries = list.as_array().into_iter().flatten();
        Self {
            all: entries.filter_map(Variable::from_entry).collect(),
        }
    }

    /// Reads the variables of an object in `CI_JOB_SERVICES`, whose values are expanded already.
    pub fn from_object(object: &Value) -> Self {
        let read = |(name, value): (&String, &Value)| {
            let value = value.as_str().filter(|_| is_name(name))?;
            Some(Variable {
                name: name.clone(),
                value: value.to_owned(),
                is_public: true,
                is_raw: true,
            })
        };
        let entries = object.as_object().into_iter().flatten();
        Self {
            all: entries.filter_map(read).collect(),
        }
    }

    /// Returns `text` with `$NAME` and `${NAME}` replaced by values, and `$$` by `$`.
    pub fn expand(&self, text: &str) -> String {
        let mut expanded = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('$') {
            expanded += before;
            let (value, after_reference) = self.reference(after);
            expanded += &value;
            rest = after_reference;
        }
        expanded + rest
    }

    /// Returns the public variables and then all of `more` as `NAME=VALUE`, with expanded values.
    pub fn environment_with(&self, more: &Self) -> Vec<String> {
        let everything = Self {
            all: self.all.iter().chain(&more.all).cloned().collect(),
        };
        let public = self.all.iter().filter(|variable| variable.is_public);
        public
            .chain(&more.all)
            .map(|variable| format!("{}={}", variable.name, everything.value_of(variable)))
            .collect()
    }

    /// Returns the value of the first variable of this name.
    ///
    /// GitLab's own variables precede those of the job, which may have the same names.
    pub fn first(&self, name: &str) -> Option<&str> {
        let mut all = self.all.iter();
        let variable = all.find(|variable| variable.name == name)?;
        Some(&variable.value)
    }

    fn value_of(&self, variable: &Variable) -> String {
        if variable.is_raw {
            variable.value.clone()
        } else {
            self.expand(&variable.value)
        }
    }

    // Returns the value of the reference at the beginning of `text`, behind its `$`, and the text
    // after the reference.
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
        let variable = self.all.iter().rev().find(|variable| variable.name == name);
        variable
            .map(|variable| variable.value.clone())
            .unwrap_or_default()
    }
}

impl Variable {
    fn from_entry(entry: &Value) -> Option<Self> {
        let flag = |name: &str| entry[name].as_bool().unwrap_or(false);
        let name = entry["key"].as_str().filter(|name| is_name(name))?;
        Some(Self {
            name: name.to_owned(),
            value: entry["value"].as_str()?.to_owned(),
            is_public: flag("public") && !flag("file"),
            is_raw: flag("raw"),
        })
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
        Variables::from_list(&json!([
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
    fn references_are_expanded() {
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
    fn environment_has_only_public_variables_of_the_job() {
        let more = Variables::from_list(
            &json!([{ "key": "OWN", "value": "$NAME-$OWN", "public": false }]),
        );
        let environment = variables().environment_with(&more);
        assert_eq!(
            environment,
            [
                "NAME=old",
                "NAME=db",
                "URL=x://db/secret",
                "RAW=$NAME",
                "OWN=db-$NAME-$OWN"
            ]
        );
        let more = Variables::from_object(&json!({ "A": "$B", "=": "x", "C": 1 }));
        assert_eq!(Variables::default().environment_with(&more), ["A=$B"]);
    }
}
