//! What README and help texts say is what there is.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use nspawn_tests::{call, finish, image};

const PROGRAMS: [&str; 3] = ["nspawn-prepare", "nspawn-run", "nspawn-cleanup"];

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn readme() -> String {
    fs::read_to_string(repository().join("README.md")).unwrap()
}

/// The long options in a text.
fn options(text: &str) -> BTreeSet<String> {
    let option = |rest: &str| rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '-').collect::<String>();
    let options = text.match_indices("--").map(|(place, _)| option(&text[place..]));
    options.filter(|option| option.len() > 3 && !option.ends_with('-')).collect()
}

#[test]
fn every_option_in_the_readme_exists() {
    let mut known = BTreeSet::from(["--machine".to_owned()]);
    for program in PROGRAMS {
        known.extend(options(&call(program, ["--help"]).expect(0).out()));
    }
    let scripts =
        ["nspawn-image", "install", "setup", "test", "bench", "demo", "check-host", "gitlab-runner-config", "package"];
    for script in scripts {
        known.extend(options(
            &call(repository().join("scripts").join(script).to_str().unwrap(), ["--help"]).expect(0).out(),
        ));
    }
    known.extend(options(&call(repository().join("tests/host").to_str().unwrap(), ["--help"]).expect(0).out()));
    // For GitLab's config stage alone, and so in no help text.
    known.insert("--config".to_owned());
    let unknown: Vec<_> = options(&readme()).difference(&known).cloned().collect();
    assert_eq!(unknown, [] as [&str; 0]);
}

#[test]
fn every_option_names_its_variable() {
    for program in PROGRAMS {
        let help = call(program, ["--help"]).expect(0).out();
        // Those that a line defines, not those that its text mentions.
        let defined = help.lines().filter(|line| line.trim_start().starts_with('-'));
        let defined = defined.flat_map(|line| options(line.split("  ").find(|part| part.contains("--")).unwrap()));
        for option in defined {
            let variable =
                format!("[env: NSPAWN_{}]", option.trim_start_matches("--").to_uppercase().replace('-', "_"));
            // For the command line only.
            let exempt = ["--help", "--version", "--machine", "--standby"].contains(&&*option)
                || (program, &*option) == ("nspawn-run", "--image");
            assert!(exempt || help.contains(&variable), "no {variable} in\n{help}");
        }
    }
}

/// The commands under 'By hand', run as they stand but for the image, which every host has.
#[test]
fn the_commands_by_hand_work() {
    let readme = readme();
    let block = readme.split("## By hand").nth(1).unwrap().split("```").nth(1).unwrap();
    let commands = block.trim_start_matches("sh").replace("bookworm", &image());
    let commands: Vec<_> = commands.lines().filter(|line| !line.starts_with("nspawn-image")).collect();
    let dir = std::env::temp_dir().join(format!("e2e-readme-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let setting = "git init -q; git config user.name x; git config user.email x@example.com; echo x >x.md; git add .; git commit -qm x";
    let script = format!("set -e; cd {}; {setting}\n{}", dir.display(), commands.join("\n"));
    let done = finish(Command::new("sh").args(["-c", &script]), b"").expect(0);
    let listed = fs::read_to_string(dir.join("documents.txt")).unwrap();
    fs::remove_dir_all(&dir).unwrap();
    assert_eq!(listed, "./x.md\n");
    assert!(done.out().ends_with("running\nit ended with 3\n"), "{}", done.describe());
}
