//! Environment of a login, as the machine's files define it.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use nspawn_common::machine::passwd::User;
use nspawn_common::sys::fs::read_regular_file;

/// Search path of a command, which is that of systemd's services.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Files with the locale of the machine: of systemd (locale.conf(5)) and of Debian.
const LOCALE: [&str; 2] = ["/etc/locale.conf", "/etc/default/locale"];
/// File with variables for all logins (pam_env(8)).
const ENVIRONMENT: &str = "/etc/environment";
/// Number of bytes that are read of a file at most.
const MAX_SIZE: u64 = 64 << 10;

/// Returns the variables of a login of `user`. A later one replaces an earlier one.
pub fn variables(user: &User) -> Vec<(OsString, OsString)> {
    let mut variables: Vec<(OsString, OsString)> = [
        ("HOME", &*user.home),
        ("USER", &*user.name),
        ("LOGNAME", &*user.name),
        ("SHELL", &*user.shell),
        ("PATH", OsStr::new(PATH)),
    ]
    .map(|(name, value)| (name.into(), value.to_owned()))
    .into();
    let locale = LOCALE.iter().flat_map(|path| parse(&read(path)));
    variables.extend(locale.filter(|(name, _)| is_locale(name)));
    variables.extend(parse(&read(ENVIRONMENT)));
    variables.extend(runtime_directory(user));
    variables
}

/// Returns the directory of the user's systemd and D-Bus.
pub fn runtime_path(user: &User) -> String {
    format!("/run/user/{}", user.uid)
}

/// Returns the variables that lead to the user's systemd and D-Bus, if these run.
fn runtime_directory(user: &User) -> Vec<(OsString, OsString)> {
    let path = runtime_path(user);
    let is_own = |metadata: fs::Metadata| metadata.is_dir() && metadata.uid() == user.uid;
    if !fs::symlink_metadata(&path).is_ok_and(is_own) {
        return Vec::new();
    }
    let bus = format!("{path}/bus");
    let has_bus = fs::symlink_metadata(&bus).is_ok_and(|bus| bus.file_type().is_socket());
    let address = (
        "DBUS_SESSION_BUS_ADDRESS".into(),
        format!("unix:path={bus}").into(),
    );
    let mut variables = vec![("XDG_RUNTIME_DIR".into(), path.into())];
    variables.extend(has_bus.then_some(address));
    variables
}

fn is_locale(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name == b"LANG" || name == b"LANGUAGE" || name.starts_with(b"LC_")
}

/// Reads a file. One that can't be read, or is no regular file, has no variables.
fn read(path: &str) -> Vec<u8> {
    read_regular_file(path, MAX_SIZE).unwrap_or_default()
}

/// Parses lines of the form `[export ]NAME=VALUE`, like pam_env(8).
fn parse(text: &[u8]) -> Vec<(OsString, OsString)> {
    let lines = text.split(|byte| *byte == b'\n');
    lines.filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<(OsString, OsString)> {
    let line = line.trim_ascii();
    let line = line.strip_prefix(b"export ").unwrap_or(line).trim_ascii();
    let equals = line.iter().position(|byte| *byte == b'=')?;
    let (name, value) = (&line[..equals], unquoted(&line[equals + 1..]));
    let is_name = !name.is_empty()
        && !name[0].is_ascii_digit()
        && name
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    if !is_name || value.contains(&0) {
        return None;
    }
    Some((
        OsStr::from_bytes(name).into(),
        OsStr::from_bytes(value).into(),
    ))
}

/// Removes quotes around a value, or a comment behind it.
fn unquoted(value: &[u8]) -> &[u8] {
    if let [quote @ (b'"' | b'\''), rest @ ..] = value {
        let end = rest.iter().position(|byte| byte == quote);
        return end.map_or(rest, |end| &rest[..end]);
    }
    let is_comment = |pair: &[u8]| pair[0].is_ascii_whitespace() && pair[1] == b'#';
    let end = value.windows(2).position(is_comment);
    value[..end.unwrap_or(value.len())].trim_ascii_end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_parsed_like_those_of_pam_env() {
        let text = b"# comment\n A=1\nexport B='b c' # x\nC=\"d\nD=a#b # c\nE=\n=x\nF G=1\n1=2\nno\nH=\0\nI=x=y";
        let expected = [
            ("A", "1"),
            ("B", "b c"),
            ("C", "d"),
            ("D", "a#b"),
            ("E", ""),
            ("I", "x=y"),
        ];
        let expected = expected.map(|(name, value)| (name.into(), value.into()));
        assert_eq!(parse(text), expected);
    }

    #[test]
    fn only_variables_of_the_locale_are_known_as_such() {
        for (name, expected) in [
            ("LANG", true),
            ("LC_ALL", true),
            ("LANGX", false),
            ("PATH", false),
        ] {
            assert_eq!(is_locale(OsStr::new(name)), expected, "{name}");
        }
    }
}
