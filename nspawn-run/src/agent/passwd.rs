//! Users of the machine, read from its own files: a static program has no NSS.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use anyhow::{Context, Result};

/// A user, as a login would have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub name: OsString,
    pub uid: u32,
    pub gid: u32,
    /// All groups, the first one included.
    pub groups: Vec<u32>,
    pub home: OsString,
    pub shell: OsString,
}

/// The user of this name or number, which need not be in `/etc/passwd`; behind a colon may be another group than the
/// user's.
///
/// # Errors
/// No user of this name.
pub fn find(wanted: &OsStr) -> Result<User> {
    let read = |path: &str| fs::read(path).unwrap_or_default();
    find_in(wanted.as_bytes(), &read("/etc/passwd"), &read("/etc/group"))
        .with_context(|| format!("the machine has no user {wanted:?}"))
}

fn find_in(wanted: &[u8], passwd: &[u8], groups: &[u8]) -> Option<User> {
    let (name, group) = match wanted.iter().position(|byte| *byte == b':') {
        Some(colon) => (&wanted[..colon], Some(&wanted[colon + 1..])),
        None => (wanted, None),
    };
    let user = find_named(name, passwd, groups)?;
    match group {
        None => Some(user),
        Some(group) => find_group(group, groups).map(|gid| User {
            gid,
            groups: vec![gid],
            ..user
        }),
    }
}

fn find_group(wanted: &[u8], group: &[u8]) -> Option<u32> {
    let named = group.split(|byte| *byte == b'\n').find_map(|line| {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b':').collect();
        if fields.len() == 4 && fields[0] == wanted {
            number(fields[2])
        } else {
            None
        }
    });
    named.or_else(|| number(wanted))
}

fn find_named(wanted: &[u8], passwd: &[u8], group: &[u8]) -> Option<User> {
    let users = || passwd.split(|byte| *byte == b'\n').filter_map(parse);
    let number = std::str::from_utf8(wanted)
        .ok()
        .and_then(|text| text.parse().ok());
    let named = users().find(|user| user.name.as_bytes() == wanted);
    let numbered = || {
        number.map(|number| {
            users()
                .find(|user| user.uid == number)
                .unwrap_or_else(|| unnamed(number))
        })
    };
    let root = || (wanted == b"root").then(|| unnamed(0));
    let mut user = named.or_else(numbered).or_else(root)?;
    user.groups = groups_of(&user, group);
    Some(user)
}

// name:password:uid:gid:comment:home:shell
fn parse(line: &[u8]) -> Option<User> {
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
        uid: number(uid)?,
        gid: number(gid)?,
        groups: Vec::new(),
        home: text(home, "/"),
        shell: text(shell, "/bin/sh"),
    })
}

fn unnamed(uid: u32) -> User {
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

// name:password:gid:member,member
fn groups_of(user: &User, group: &[u8]) -> Vec<u32> {
    let mut groups = vec![user.gid];
    for line in group.split(|byte| *byte == b'\n') {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b':').collect();
        let &[_, _, gid, members] = &*fields else {
            continue;
        };
        if members
            .split(|byte| *byte == b',')
            .any(|member| member == user.name.as_bytes())
        {
            groups.extend(number(gid));
        }
    }
    groups.dedup();
    groups
}

fn number(field: &[u8]) -> Option<u32> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/bash\n# comment\nbroken:x:y\n1000:x:7:7::/odd:\nann:x:1000:100:Ann,\xff:/home/ann:/bin/zsh\n";
    const GROUP: &[u8] = b"root:x:0:\nsudo:x:27:bob,ann\ndocker:x:999:ann\nusers:x:100:\n";

    #[test]
    fn names_come_before_numbers() {
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
    fn numbers_need_no_entry_and_root_needs_no_file() {
        assert_eq!(
            find_in(b"4242", PASSWD, GROUP).unwrap(),
            User {
                groups: vec![4242],
                ..unnamed(4242)
            }
        );
        assert_eq!(find_in(b"root", b"", b"").unwrap().home, "/root");
        assert_eq!(find_in(b"nobody-here", PASSWD, GROUP), None);
        assert_eq!(find_in(b"", PASSWD, GROUP), None);
    }

    #[test]
    fn another_group_may_be_named() {
        for (wanted, gid) in [
            (&b"ann:docker"[..], 999),
            (b"4242:7", 7),
            (b"root:users", 100),
        ] {
            let user = find_in(wanted, PASSWD, GROUP).unwrap();
            assert_eq!((user.gid, &*user.groups), (gid, &[gid][..]));
        }
        for none in [&b"ann:"[..], b"ann:nobody", b":0"] {
            assert_eq!(find_in(none, PASSWD, GROUP), None);
        }
    }
}
