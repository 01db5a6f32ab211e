//! Users of a machine, as its own files list them. A static program has no NSS.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use anyhow::{Context, Result};

use crate::sys::fs::read_in_root;

/// Maximum size of a list of users or groups on the host's side, in bytes.
const MAX_SIZE: u64 = 4 << 20;

/// User with the attributes of a login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Name, or the number if the user has no name.
    pub name: OsString,
    /// ID in the machine.
    pub uid: u32,
    /// ID of the primary group.
    pub gid: u32,
    /// All groups, with the primary one.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: OsString,
    /// Login shell.
    pub shell: OsString,
}

/// Finds the user of this name or number in the machine that this process runs in. A number need not
/// be in `/etc/passwd`.
///
/// A group may follow after a colon, and replaces all groups of the user.
///
/// # Errors
/// Fails if there is no such user or group.
pub fn find(wanted: &OsStr) -> Result<User> {
    let passwd = fs::read("/etc/passwd").unwrap_or_default();
    let groups = fs::read("/etc/group").unwrap_or_default();
    find_in(wanted.as_bytes(), &passwd, &groups).with_context(|| missing(wanted))
}

/// Finds the user as [`find`] does, in the machine whose root directory is `root`.
///
/// # Errors
/// As [`find`]. The lists may be anything that root in the machine has put there.
pub fn find_in_root(root: &File, wanted: &OsStr) -> Result<User> {
    let [passwd, groups] = ["etc/passwd", "etc/group"]
        .map(|path| read_in_root(root, path, MAX_SIZE).unwrap_or_default());
    find_in(wanted.as_bytes(), &passwd, &groups).with_context(|| missing(wanted))
}

fn missing(wanted: &OsStr) -> String {
    format!("the machine has no user {wanted:?}")
}

fn find_in(wanted: &[u8], passwd: &[u8], groups: &[u8]) -> Option<User> {
    let Some(colon) = wanted.iter().position(|byte| *byte == b':') else {
        return find_user(wanted, passwd, groups);
    };
    let user = find_user(&wanted[..colon], passwd, groups)?;
    let gid = find_group(&wanted[colon + 1..], groups)?;
    Some(User {
        gid,
        groups: vec![gid],
        ..user
    })
}

fn find_group(wanted: &[u8], groups: &[u8]) -> Option<u32> {
    let by_name = groups.split(|byte| *byte == b'\n').find_map(|line| {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b':').collect();
        if fields.len() == 4 && fields[0] == wanted {
            parse_number(fields[2])
        } else {
            None
        }
    });
    by_name.or_else(|| parse_number(wanted))
}

fn find_user(wanted: &[u8], passwd: &[u8], groups: &[u8]) -> Option<User> {
    let users = || {
        passwd
            .split(|byte| *byte == b'\n')
            .filter_map(parse_passwd_line)
    };
    let by_name = users().find(|user| user.name.as_bytes() == wanted);
    let by_number = || {
        let uid = parse_number(wanted)?;
        let listed = users().find(|user| user.uid == uid);
        Some(listed.unwrap_or_else(|| unlisted_user(uid)))
    };
    let root = || (wanted == b"root").then(|| unlisted_user(0));
    let mut user = by_name.or_else(by_number).or_else(root)?;
    user.groups = groups_of(&user, groups);
    Some(user)
}

// The format is name:password:uid:gid:comment:home:shell.
fn parse_passwd_line(line: &[u8]) -> Option<User> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b':').collect();
    let &[name, _, uid, gid, _, home, shell] = &*fields else {
        return None;
    };
    let text = |field: &[u8], default: &str| {
        if field.is_empty() {
            default.into()
        } else {
            OsString::from_vec(field.to_vec())
        }
    };
    Some(User {
        name: text(name, "root"),
        uid: parse_number(uid)?,
        gid: parse_number(gid)?,
        groups: Vec::new(),
        home: text(home, "/"),
        shell: text(shell, "/bin/sh"),
    })
}

// Returns a user without an entry in /etc/passwd.
fn unlisted_user(uid: u32) -> User {
    let (name, home) = if uid == 0 {
        ("root".into(), "/root")
    } else {
        (uid.to_string().into(), "/")
    };
    User {
        name,
        uid,
        gid: uid,
        groups: Vec::new(),
        home: home.into(),
        shell: "/bin/sh".into(),
    }
}

// The format of a group is name:password:gid:member,member.
fn groups_of(user: &User, group_file: &[u8]) -> Vec<u32> {
    let mut groups = vec![user.gid];
    for line in group_file.split(|byte| *byte == b'\n') {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b':').collect();
        let &[_, _, gid, members] = &*fields else {
            continue;
        };
        if members
            .split(|byte| *byte == b',')
            .any(|member| member == user.name.as_bytes())
        {
            groups.extend(parse_number(gid));
        }
    }
    groups.dedup();
    groups
}

fn parse_number(field: &[u8]) -> Option<u32> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/bash\n# comment\nbroken:x:y\n1000:x:7:7::/odd:\nann:x:1000:100:Ann,\xff:/home/ann:/bin/zsh\n";
    const GROUP: &[u8] = b"root:x:0:\nsudo:x:27:bob,ann\ndocker:x:999:ann\nusers:x:100:\n";

    #[test]
    fn name_takes_precedence_over_number() {
        let ann = find_in(b"ann", PASSWD, GROUP).unwrap();
        assert_eq!(
            (ann.uid, ann.gid, &*ann.groups),
            (1000, 100, &[100, 27, 999][..])
        );
        assert_eq!(
            (ann.home, ann.shell),
            ("/home/ann".into(), "/bin/zsh".into())
        );
        assert_eq!(find_in(b"1000", PASSWD, GROUP).unwrap().uid, 7);
        assert_eq!(find_in(b"7", PASSWD, GROUP).unwrap().shell, "/bin/sh");
    }

    #[test]
    fn unlisted_numbers_and_root_are_users() {
        assert_eq!(
            find_in(b"4242", PASSWD, GROUP).unwrap(),
            User {
                groups: vec![4242],
                ..unlisted_user(4242)
            }
        );
        assert_eq!(find_in(b"root", b"", b"").unwrap().home, "/root");
        assert_eq!(find_in(b"nobody-here", PASSWD, GROUP), None);
        assert_eq!(find_in(b"", PASSWD, GROUP), None);
    }

    #[test]
    fn group_after_colon_replaces_the_groups() {
        for (wanted, gid) in [
            (&b"ann:docker"[..], 999),
            (b"4242:7", 7),
            (b"root:users", 100),
        ] {
            let user = find_in(wanted, PASSWD, GROUP).unwrap();
            assert_eq!((user.gid, &*user.groups), (gid, &[gid][..]));
        }
        for unknown in [&b"ann:"[..], b"ann:nobody", b":0"] {
            assert_eq!(find_in(unknown, PASSWD, GROUP), None);
        }
    }
}
