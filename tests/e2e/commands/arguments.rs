//! Arguments, environment and user of a command.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::process::Command;

use nspawn_tests::{Machine, call, finish, random};

/// Tests that the command gets the exact bytes of its arguments, for special and random words.
#[test]
fn arguments_reach_the_command_unchanged() {
    let machine = Machine::new();
    let special: [&[u8]; 12] = [
        b"",
        b" ",
        b"a b",
        b"'",
        b"\"",
        b"$HOME $$ ${X}",
        b"%n %%",
        b"\n",
        b"\\",
        b"-x --help",
        b"\xff\xfe\x01",
        b"*;|&`#~",
    ];
    check_arguments(&machine, &special.map(<[u8]>::to_vec));
    let seed = std::env::var("E2E_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or(0x5eed);
    for round in 0..40 {
        let count = 1 + usize::from(random(1, seed + round)[0]) % 8;
        let words: Vec<_> = (0..count)
            .map(|place| random_word(seed + round * 100 + place as u64))
            .collect();
        check_arguments(&machine, &words);
    }
}

fn check_arguments(machine: &Machine, words: &[Vec<u8>]) {
    let printf = ["printf", r"%s\0"].map(OsString::from);
    let done = machine
        .run(
            printf
                .into_iter()
                .chain(words.iter().cloned().map(OsString::from_vec)),
        )
        .expect(0);
    let expected: Vec<u8> = words
        .iter()
        .flat_map(|word| [&word[..], b"\0"].concat())
        .collect();
    assert_eq!(done.stdout, expected, "{}", done.describe());
}

fn random_word(seed: u64) -> Vec<u8> {
    let length = usize::from(random(1, seed)[0]) % 24;
    random(length, seed ^ 0xffff)
        .into_iter()
        .map(|byte| byte.max(1))
        .collect()
}

#[test]
fn argument_of_the_kernels_maximum_length_is_passed() {
    let machine = Machine::new();
    let long = "x".repeat(131_071);
    assert_eq!(machine.run(["printf", "%s", &long]).expect(0).out(), long);
}

#[test]
fn environment_is_that_of_a_login() {
    let machine = Machine::with(&["--setenv=FOR_ALL=a $b", "-E", "OVER=1"]);
    let done = finish(
        Command::new("nspawn-run").args(["-E", "OVER=2", &machine.name, "env"]),
        b"",
    )
    .expect(0);
    let mut lines: Vec<_> = done.out().lines().map(str::to_owned).collect();
    lines.sort_unstable();
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(
        lines,
        [
            "FOR_ALL=a $b",
            "HOME=/root",
            "LOGNAME=root",
            "OVER=2",
            path,
            "SHELL=/bin/bash",
            "USER=root"
        ]
    );
    assert_eq!(machine.run(["pwd"]).expect(0).out(), "/root\n");
    machine
        .run(["git", "config", "--global", "user.name", "x"])
        .expect(0);
}

#[test]
fn environment_value_of_any_bytes_is_passed() {
    let machine = Machine::new();
    let value = OsStr::from_bytes(b"a\n'\"$x\xff=");
    let done = finish(
        Command::new("nspawn-run").env("ODD", value).args([
            "-E",
            "ODD",
            &machine.name,
            "printenv",
            "ODD",
        ]),
        b"",
    )
    .expect(0);
    assert_eq!(done.stdout, [value.as_bytes(), b"\n"].concat());
}

#[test]
fn uid_option_sets_groups_home_and_directory() {
    let machine = Machine::new();
    machine
        .sh("useradd --create-home --shell /bin/sh --groups games ann")
        .expect(0);
    let done = call(
        "nspawn-run",
        [
            "--uid=ann",
            &machine.name,
            "sh",
            "-c",
            "id -un; id -Gn; echo $HOME; pwd; echo e >/dev/stderr",
        ],
    )
    .expect(0);
    assert_eq!(
        (&*done.out(), &*done.err()),
        ("ann\nann games\n/home/ann\n/home/ann\n", "e\n")
    );
    let done = call(
        "nspawn-run",
        [
            "--uid=12345",
            "--working-directory=/tmp",
            &machine.name,
            "sh",
            "-c",
            "id -u; pwd",
        ],
    )
    .expect(0);
    assert_eq!(done.out(), "12345\n/tmp\n");
}
