//! Standby pools: the record of each call of `nspawn-prepare --standby`.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nspawn_common::command;
use nspawn_common::lifecycle::lock;
use nspawn_common::lifecycle::lock::{Lock, Resource};
use nspawn_common::machine::name;
use nspawn_common::machine::paths::POOL_ROOT;
use nspawn_common::sys::environment;
use nspawn_common::sys::fs::remove_file_if_present;
use nspawn_common::systemd::nspawn;
use nspawn_common::systemd::transient_unit::TransientUnit;
use serde_json::{Value, json};

use crate::create::step::Step;
use crate::diagnostics::print_diagnostic;
use crate::internal_form::Internal;

/// Time limit for other processes to count standby machines.
const COUNT_LIMIT: Duration = Duration::from_secs(60);
/// Time limit for systemd to start the timer that refills a pool.
const REFILL_LIMIT: Duration = Duration::from_secs(10);

/// Pool of standby machines that one call of `nspawn-prepare --standby` requested.
pub struct Pool {
    pub id: String,
    record: Value,
}

impl Pool {
    /// Records a pool, so that its machines can be created later.
    ///
    /// `arguments` are those of the call, and `machine_environment` the variables of the machines.
    /// A call with the same arguments and images, but another count, changes the existing pool. A
    /// count of 0 deletes it.
    pub fn record(
        arguments: &[OsString],
        images: &[String],
        count: usize,
        machine_environment: &[OsString],
    ) -> Result<Self> {
        let directory = env::current_dir().context("can't determine the current directory")?;
        let arguments = without_count(arguments).into_iter().map(to_text);
        let record = json!({
            "images": images,
            "directory": to_text(directory)?,
            "environment": environment(machine_environment)?,
            "arguments": arguments.collect::<Result<Vec<_>>>()?,
            "count": count,
        });
        let _lock = lock_all()?;
        let existing = all()?.into_iter().find(|pool| pool.is_same(&record));
        if existing.is_none() && count == 0 {
            let line = "no standby machines with these options and images exist";
            print_diagnostic(line);
        }
        let id = match existing {
            Some(pool) => pool.id,
            None => name::random_uuid()?,
        };
        let pool = Self { id, record };
        if count == 0 {
            remove_file_if_present(&pool.path())?;
        } else {
            Step::file(pool.path(), pool.record.to_string().into_bytes()).run()?;
        }
        Ok(pool)
    }

    fn is_same(&self, record: &Value) -> bool {
        ["images", "arguments"]
            .iter()
            .all(|key| self.record[key] == record[key])
    }

    /// Returns the pool with this ID; `None` if it was deleted.
    pub fn find(id: &OsStr) -> Result<Option<Self>> {
        Ok(all()?.into_iter().find(|pool| *pool.id == *id))
    }

    fn path(&self) -> PathBuf {
        Path::new(POOL_ROOT).join(&self.id)
    }

    /// Returns the number of machines of each image that the pool is to have now.
    ///
    /// Another call may have changed the number since this record was read.
    pub fn current_count(&self) -> Result<usize> {
        let Some(current) = Self::find(self.id.as_ref())? else {
            return Ok(0);
        };
        let count = current.record["count"].as_u64();
        Ok(count
            .and_then(|count| usize::try_from(count).ok())
            .unwrap_or(0))
    }

    /// Returns the content of the standby mark of this pool's machines of `image`.
    pub fn mark(&self, image: &str) -> String {
        format!("{}/{image}", self.id)
    }

    fn strings(&self, key: &str) -> impl Iterator<Item = &str> {
        let list = self.record[key].as_array();
        list.into_iter().flatten().filter_map(Value::as_str)
    }

    /// Returns the names of the pool's images.
    pub fn images(&self) -> Vec<String> {
        self.strings("images").map(str::to_owned).collect()
    }

    /// Returns the arguments of the call, without the count.
    pub fn arguments(&self) -> Vec<OsString> {
        self.strings("arguments").map(OsString::from).collect()
    }

    /// Restores the working directory and the environment variables of the call in this process.
    pub fn restore_context(&self) -> Result<()> {
        for variable in self.strings("environment") {
            let Some((name, value)) = variable.split_once('=') else {
                continue;
            };
            if env::var_os(name).is_none() {
                environment::set_variable(name, value);
            }
        }
        let directory = self.record["directory"].as_str().unwrap_or("/");
        env::set_current_dir(directory).with_context(|| format!("can't enter {directory}"))
    }

    fn refill_command(&self) -> Result<Vec<OsString>> {
        // The delay keeps the refill from slowing down the machine that was just taken over.
        let timer = ["--on-active=1s", "--timer-property=AccuracySec=100ms"];
        let unit = TransientUnit::new("exec")
            .options(["--quiet"])
            .options(timer)
            .described("Refill of a standby pool of CI machines");
        let refill = Internal::Refill {
            pool: self.id.clone().into(),
        };
        Ok(unit.command(refill.argv()?))
    }
}

/// Returns whether this host has any pools.
pub fn exist() -> bool {
    Path::new(POOL_ROOT).exists()
}

/// Locks all pools. While the lock is held, no other process counts standby machines.
pub fn lock_all() -> Result<Lock> {
    lock::host(Resource::Pools, COUNT_LIMIT)
}

/// Starts the refill of all pools that have machines of this image.
pub fn refill(image: &str) -> Result<()> {
    if !exist() {
        return Ok(());
    }
    for pool in all()? {
        if pool.strings("images").any(|name| name == image) {
            command::run_checked(&pool.refill_command()?, REFILL_LIMIT)?;
        }
    }
    Ok(())
}

fn all() -> Result<Vec<Pool>> {
    let mut pools = Vec::new();
    for entry in fs::read_dir(POOL_ROOT).with_context(|| format!("can't read {POOL_ROOT}"))? {
        let path = entry?.path();
        let Some(id) = path.file_name().and_then(OsStr::to_str) else {
            continue;
        };
        // Another process may be deleting or writing the record.
        let Some(record) = fs::read(&path)
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
        else {
            continue;
        };
        pools.push(Pool {
            id: id.to_owned(),
            record,
        });
    }
    Ok(pools)
}

// The variables that set options in this process, and those of the machines.
fn environment(machine_environment: &[OsString]) -> Result<Vec<String>> {
    let mut variables = Vec::new();
    for (name, value) in env::vars_os() {
        if name.as_bytes().starts_with(b"NSPAWN_") {
            let name = name.to_str().unwrap_or_default();
            variables.push(to_text(nspawn::assign(name, &value))?);
        }
    }
    for variable in machine_environment {
        variables.push(to_text(variable)?);
    }
    Ok(variables)
}

// The count is `--standby=N` or `--standby N`.
fn without_count(arguments: &[OsString]) -> Vec<&OsString> {
    let mut rest = Vec::new();
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        if word == "--standby" {
            words.next();
        } else if !word.as_bytes().starts_with(b"--standby=") {
            rest.push(word);
        }
    }
    rest
}

fn to_text(word: impl AsRef<OsStr>) -> Result<String> {
    let word = word.as_ref();
    let text = word.to_str().map(str::to_owned);
    text.ok_or_else(|| anyhow!("{word:?} is not UTF-8, which systemd needs it to be"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn count_is_no_part_of_the_arguments() {
        let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        for arguments in [
            &["--standby=2", "a", "--init=stub"][..],
            &["a", "--standby", "2", "--init=stub"],
            &["a", "--init=stub", "--standby"],
        ] {
            let arguments = words(arguments);
            assert_eq!(without_count(&arguments), ["a", "--init=stub"]);
        }
    }
}
