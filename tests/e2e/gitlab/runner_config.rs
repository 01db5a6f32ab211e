//! The configuration that `scripts/bin/gitlab-runner-config` writes for GitLab Runner.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use nspawn_tests::{Done, call, finish, scratch, sh};
use serde_json::{Value, json};

const TOKEN: &str = "glrt-abc.DEF_1-2";

/// Keys of a custom executor in GitLab Runner 14 to 19 (docs.gitlab.com, "The Custom executor").
const KNOWN: [&str; 13] = [
    "config_exec",
    "config_args",
    "config_exec_timeout",
    "prepare_exec",
    "prepare_args",
    "prepare_exec_timeout",
    "run_exec",
    "run_args",
    "cleanup_exec",
    "cleanup_args",
    "cleanup_exec_timeout",
    "graceful_kill_timeout",
    "force_kill_timeout",
];

fn configure(arguments: &[&str], token: &str) -> Done {
    finish(
        Command::new("gitlab-runner-config")
            .args(["--url", "https://gitlab.example"])
            .args(arguments),
        token.as_bytes(),
    )
}

/// Converts TOML to JSON.
fn parse_toml(text: &[u8]) -> Value {
    let program =
        "import json, sys, tomllib; json.dump(tomllib.load(sys.stdin.buffer), sys.stdout)";
    let done = finish(Command::new("python3").args(["-c", program]), text).expect(0);
    serde_json::from_slice(&done.stdout).unwrap()
}

#[test]
fn output_matches_the_gitlab_page() {
    let page = fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../scripts/docs/gitlab.md"
    ))
    .unwrap();
    let shown = page
        .split("```toml\n")
        .nth(1)
        .unwrap()
        .split("```")
        .next()
        .unwrap();
    let options = [
        "--url=https://gitlab.example.com",
        "--name=nspawn",
        "--default-image=bookworm",
    ];
    let done = finish(
        Command::new("gitlab-runner-config").args(options),
        TOKEN.as_bytes(),
    )
    .expect(0);
    let installed = sh("dirname \"$(command -v nspawn-prepare)\"").out();
    assert_eq!(
        done.out()
            .replace(installed.trim(), "/usr/local/bin")
            .replace(TOKEN, "glrt-…"),
        shown
    );
}

#[test]
fn output_has_only_keys_that_gitlab_runner_knows() {
    let options = [
        "--name=a \"b\"",
        "--default-image=bookworm",
        "--limit",
        "3",
        "--",
        "--setenv=X=\\$HOME \"",
        "--nesting",
    ];
    let done = configure(&options, TOKEN).expect(0);
    let runner = parse_toml(&done.stdout)["runners"][0].clone();
    assert_eq!(
        (
            &runner["name"],
            &runner["url"],
            &runner["token"],
            &runner["executor"],
            &runner["limit"]
        ),
        (
            &json!("a \"b\""),
            &json!("https://gitlab.example"),
            &json!(TOKEN),
            &json!("custom"),
            &json!(3)
        )
    );
    let custom = runner["custom"].as_object().unwrap();
    let unknown: Vec<_> = custom
        .keys()
        .filter(|key| !KNOWN.contains(&key.as_str()))
        .collect();
    assert_eq!(unknown, [] as [&String; 0]);
    assert_eq!(
        custom["prepare_args"],
        json!([
            "--default-image=bookworm",
            "--setenv=X=\\$HOME \"",
            "--nesting"
        ])
    );
    assert!(custom["graceful_kill_timeout"].as_u64().unwrap() < 30);
    for key in ["config_exec", "prepare_exec", "run_exec", "cleanup_exec"] {
        call(custom[key].as_str().unwrap(), ["--version"]).expect(0);
    }
    call(
        custom["config_exec"].as_str().unwrap(),
        [custom["config_args"][0].as_str().unwrap()],
    )
    .expect(0);
}

#[test]
fn runner_is_added_to_an_existing_file() {
    let file = scratch("config-add").join("config.toml");
    let path = file.to_str().unwrap();
    let before =
        "concurrent = 4\n[[runners]]\n  name = \"old\"\n  [runners.docker]\n    image = \"x\"";
    fs::write(&file, before).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    let done = configure(&["--name=new", "--add", path], TOKEN).expect(0);
    assert_eq!(done.out(), "");
    let config = parse_toml(&fs::read(&file).unwrap());
    assert_eq!(
        (
            &config["concurrent"],
            &config["runners"][0]["docker"]["image"]
        ),
        (&json!(4), &json!("x"))
    );
    assert_eq!(
        (
            &config["runners"][1]["name"],
            &config["runners"][1]["token"]
        ),
        (&json!("new"), &json!(TOKEN))
    );
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o640
    );
    assert_eq!(
        fs::read_to_string(file.with_extension("toml.old")).unwrap(),
        before
    );
    check_file_count(&file, 2);
    fs::remove_dir_all(file.parent().unwrap()).unwrap();
}

fn check_file_count(file: &Path, count: usize) {
    assert_eq!(
        fs::read_dir(file.parent().unwrap()).unwrap().count(),
        count,
        "other files are left in the directory"
    );
}

#[test]
fn same_token_is_not_added_twice() {
    let file = scratch("config-twice").join("config.toml");
    let path = file.to_str().unwrap();
    configure(&["--add", path], TOKEN).expect(0);
    let before = fs::read(&file).unwrap();
    configure(&["--add", path], TOKEN).expect(1);
    assert_eq!(fs::read(&file).unwrap(), before);
    check_file_count(&file, 1);
    fs::remove_dir_all(file.parent().unwrap()).unwrap();
}

/// The file is secret, since it has a token.
#[test]
fn new_file_is_accessible_to_root_only() {
    let file = scratch("config-new").join("config.toml");
    configure(&["--add", file.to_str().unwrap()], TOKEN).expect(0);
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    check_file_count(&file, 1);
    fs::remove_dir_all(file.parent().unwrap()).unwrap();
}

#[test]
fn invalid_input_adds_nothing() {
    let directory = scratch("config-bad");
    let file = directory.join("config.toml");
    let path = file.to_str().unwrap();
    for (arguments, token) in [
        (&["--add", path][..], ""),
        (&["--add", path], "two words"),
        (&["--add", path, "--limit=0"], TOKEN),
        (&["--add", path, "--name=a\nb"], TOKEN),
        (&["--add", path, "--nonsense"], TOKEN),
        (&["--add", path, "--url=gitlab.example"], TOKEN),
        (&["--add", path, "--name"], TOKEN),
        (&["--add", "/nowhere/config.toml"], TOKEN),
        (&["--add", directory.to_str().unwrap()], TOKEN),
    ] {
        let done = configure(arguments, token).expect(1);
        assert!(
            done.err().starts_with("gitlab-runner-config: ") && done.err().lines().count() == 1,
            "{}",
            done.describe()
        );
    }
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
    fs::remove_dir(&directory).unwrap();
}
