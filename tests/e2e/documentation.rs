//! Pages and help texts agree with the options that exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use nspawn_tests::call;

const PROGRAMS: [&str; 3] = ["nspawn-prepare", "nspawn-run", "nspawn-cleanup"];

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Returns the text of the pages that only describe these programs.
fn pages() -> String {
    let pages = [
        "README.md",
        "nspawn-prepare/README.md",
        "nspawn-run/README.md",
    ];
    let scripts = [
        "administration.md",
        "gitlab.md",
        "images.md",
        "security.md",
        "speed.md",
        "troubleshooting.md",
    ]
    .map(|page| format!("scripts/docs/{page}"));
    let pages = pages.map(str::to_owned).into_iter().chain(scripts);
    pages
        .map(|page| fs::read_to_string(repository().join(page)).unwrap())
        .collect()
}

/// Returns the long options in a text.
fn options(text: &str) -> BTreeSet<String> {
    let option = |rest: &str| {
        rest.chars()
            .take_while(|c| c.is_ascii_lowercase() || *c == '-')
            .collect::<String>()
    };
    let options = text
        .match_indices("--")
        .map(|(place, _)| option(&text[place..]));
    options
        .filter(|option| option.len() > 3 && !option.ends_with('-'))
        .collect()
}

#[test]
fn every_option_in_the_pages_exists() {
    // The pages also mention options of systemd's tools, of gpg and of cargo.
    let mut known: BTreeSet<_> = ["--export", "--machine", "--now", "--path"]
        .map(str::to_owned)
        .into();
    for program in PROGRAMS {
        known.extend(options(&call(program, ["--help"]).expect(0).out()));
    }
    let scripts = [
        "bin/nspawn-image",
        "install",
        "setup",
        "test",
        "bench",
        "demo",
        "bin/check-host",
        "bin/gitlab-runner-config",
        "package",
    ];
    for script in scripts {
        known.extend(options(
            &call(
                repository().join("scripts").join(script).to_str().unwrap(),
                ["--help"],
            )
            .expect(0)
            .out(),
        ));
    }
    known.extend(options(
        &call(
            repository().join("tests/host").to_str().unwrap(),
            ["--help"],
        )
        .expect(0)
        .out(),
    ));
    let unknown: Vec<_> = options(&pages()).difference(&known).cloned().collect();
    assert_eq!(unknown, [] as [&str; 0]);
}

#[test]
fn every_option_names_its_variable() {
    for program in PROGRAMS {
        let help = call(program, ["--help"]).expect(0).out();
        // A line defines an option in its first column; its text may mention others.
        let defined = help
            .lines()
            .filter(|line| line.trim_start().starts_with('-'));
        let defined = defined
            .flat_map(|line| options(line.split("  ").find(|part| part.contains("--")).unwrap()));
        for option in defined {
            let variable = format!(
                "[env: NSPAWN_{}]",
                option
                    .trim_start_matches("--")
                    .to_uppercase()
                    .replace('-', "_")
            );
            // The exempt options have no variable.
            let exempt = ["--help", "--version", "--machine", "--standby", "--config"]
                .contains(&&*option)
                || (program, &*option) == ("nspawn-run", "--image");
            assert!(
                exempt || help.contains(&variable),
                "no {variable} in\n{help}"
            );
        }
    }
}
