//! Internal forms of `nspawn-prepare`: command lines by which these programs start it again.
//!
//! No user calls them, and `--help` does not show them. A form is the first argument,
//! `--internal=FORM`, followed by the form's own arguments.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use anyhow::{Context, Result, bail};
use nspawn_common::command;
use nspawn_common::machine::name::MachineName;

/// Prefix of the first argument of every form.
const PREFIX: &[u8] = b"--internal=";

/// An internal form with its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Internal {
    /// Mounts the machine's root and becomes `command`, which is systemd-nspawn. The machine's unit
    /// calls it.
    Launch {
        machine: MachineName,
        command: Vec<OsString>,
    },
    /// Becomes `command`, and records its output. The unit of a service's command calls it.
    Record {
        machine: MachineName,
        command: Vec<OsString>,
    },
    /// Connects the machine to the host's network by pasta. The machine's network unit calls it.
    Network {
        machine: MachineName,
        /// Destinations on the host that the machine may connect to.
        allowed: Vec<OsString>,
    },
    /// Attaches the job's cache and services to the running machine. The prepare stage of a GitLab
    /// job calls it, and for a machine without an init each start.
    Attach {
        machine: MachineName,
        /// Size of a new cache, in bytes.
        cache_size: u64,
    },
    /// Creates the machine of a service of the job. The prepare stage of the job calls it, once for
    /// each service.
    Service {
        /// Number of the service among those of the job, from 1 on.
        number: u8,
        /// Options of the calling `nspawn-prepare`.
        options: Vec<OsString>,
    },
    /// Records the filters of system calls that systemd-nspawn installs with these options. A unit
    /// calls it that the first machine's launcher starts.
    RecordFilters { options: Vec<OsString> },
    /// Refills a standby pool. A timer calls it that is started when a machine of the pool is taken
    /// over.
    Refill { pool: OsString },
}

impl Internal {
    /// Returns the command line of the form, which begins with the path of this program.
    pub fn argv(&self) -> Result<Vec<OsString>> {
        let mut argv = vec![command::current_program()?.into()];
        argv.extend(self.arguments());
        Ok(argv)
    }

    fn arguments(&self) -> Vec<OsString> {
        let mut arguments = vec![format!("--internal={}", self.form()).into()];
        match self {
            Self::Launch { machine, command } | Self::Record { machine, command } => {
                arguments.push(machine.as_str().into());
                arguments.extend_from_slice(command);
            }
            Self::Network { machine, allowed } => {
                arguments.push(machine.as_str().into());
                arguments.extend_from_slice(allowed);
            }
            Self::Attach {
                machine,
                cache_size,
            } => {
                arguments.push(machine.as_str().into());
                arguments.push(cache_size.to_string().into());
            }
            Self::Service { number, options } => {
                arguments.push(number.to_string().into());
                arguments.extend_from_slice(options);
            }
            Self::RecordFilters { options } => arguments.extend_from_slice(options),
            Self::Refill { pool } => arguments.push(pool.clone()),
        }
        arguments
    }

    const fn form(&self) -> &'static str {
        match self {
            Self::Launch { .. } => "launch",
            Self::Record { .. } => "record",
            Self::Network { .. } => "network",
            Self::Attach { .. } => "attach",
            Self::Service { .. } => "service",
            Self::RecordFilters { .. } => "record-filters",
            Self::Refill { .. } => "refill",
        }
    }

    /// Returns the form that the arguments of this program ask for; `None` if they are those of the
    /// public command.
    pub fn parse(arguments: &[OsString]) -> Result<Option<Self>> {
        let Some((first, rest)) = arguments.split_first() else {
            return Ok(None);
        };
        let Some(form) = first.as_bytes().strip_prefix(PREFIX) else {
            return Ok(None);
        };
        let parsed = Self::parse_form(OsStr::from_bytes(form), rest);
        let parsed = parsed.with_context(|| {
            format!("can't use {first:?}: it is for calls by these programs; see --help")
        })?;
        Ok(Some(parsed))
    }

    fn parse_form(form: &OsStr, arguments: &[OsString]) -> Result<Self> {
        Ok(match (form.to_str(), arguments) {
            (Some("launch"), [machine, command @ ..]) => Self::Launch {
                machine: MachineName::new(machine)?,
                command: command.to_vec(),
            },
            (Some("record"), [machine, command @ ..]) => Self::Record {
                machine: MachineName::new(machine)?,
                command: command.to_vec(),
            },
            (Some("network"), [machine, allowed @ ..]) => Self::Network {
                machine: MachineName::new(machine)?,
                allowed: allowed.to_vec(),
            },
            (Some("attach"), [machine, cache_size]) => Self::Attach {
                machine: MachineName::new(machine)?,
                cache_size: number(cache_size)?,
            },
            (Some("service"), [service, options @ ..]) => Self::Service {
                number: number(service)?,
                options: options.to_vec(),
            },
            (Some("record-filters"), options) => Self::RecordFilters {
                options: options.to_vec(),
            },
            (Some("refill"), [pool]) => Self::Refill { pool: pool.clone() },
            _ => bail!("unknown form or wrong number of arguments"),
        })
    }
}

fn number<T: std::str::FromStr>(word: &OsStr) -> Result<T> {
    let number = word.to_str().and_then(|text| text.parse().ok());
    number.with_context(|| format!("{word:?} is not a number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    #[test]
    fn forms_are_parsed_from_their_own_command_lines() {
        let machine = MachineName::new("m").unwrap();
        let forms = [
            Internal::Launch {
                machine: machine.clone(),
                command: words(&["systemd-nspawn", "--internal=refill"]),
            },
            Internal::Record {
                machine: machine.clone(),
                command: words(&["nspawn-run", "m"]),
            },
            Internal::Network {
                machine: machine.clone(),
                allowed: words(&["192.0.2.1:53"]),
            },
            Internal::Attach {
                machine,
                cache_size: 10 << 30,
            },
            Internal::Service {
                number: 2,
                options: words(&["--init=stub", "--", "image"]),
            },
            Internal::Refill { pool: "p".into() },
        ];
        for form in forms {
            let argv = form.argv().unwrap();
            assert_eq!(Internal::parse(&argv[1..]).unwrap(), Some(form));
        }
    }

    #[test]
    fn command_lines_of_users_are_not_forms() {
        for arguments in [&[][..], &["bookworm"], &["bookworm", "--internal=refill"]] {
            assert_eq!(Internal::parse(&words(arguments)).unwrap(), None);
        }
    }

    #[test]
    fn wrong_arguments_of_a_form_are_errors() {
        for arguments in [
            &["--internal=launch"][..],
            &["--internal=network", "no/name"],
            &["--internal=attach", "m"],
            &["--internal=attach", "m", "-1"],
            &["--internal=service", "256"],
            &["--internal=refill", "a", "b"],
            &["--internal=start", "m"],
            &["--internal="],
        ] {
            assert!(Internal::parse(&words(arguments)).is_err(), "{arguments:?}");
        }
    }
}
