//! `scripts/bench`: the figures that it reports, and that it leaves nothing behind.

use std::fs;

use nspawn_tests::{call, finish, left_of, sh};
use serde_json::Value;

#[test]
fn bench_reports_figures_and_leaves_nothing() {
    let directory = std::env::temp_dir().join(format!("e2e-bench-{}", std::process::id()));
    fs::create_dir(&directory).unwrap();
    let (json, svg) = (directory.join("json"), directory.join("svg"));
    let peer = format!(
        "--peer=slow=echo {{}} >>{0}/names; sleep 1|test -d {{image}}/usr|rm {0}/names",
        directory.display()
    );
    let (json_option, svg_option) = (
        format!("--json={}", json.display()),
        format!("--svg={}", svg.display()),
    );
    let options = [
        "--rounds=2",
        &peer,
        "--only=hand,default,standby,slow",
        &json_option,
        &svg_option,
    ];
    let done = call("bench", options).expect(0);
    let figures: Value = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
    let median = |what: &str| {
        figures["milliseconds"][what]["median"]
            .as_f64()
            .unwrap_or_else(|| panic!("{what}"))
    };
    for contender in ["hand", "default", "standby", "slow"] {
        let stages =
            median(&format!("{contender}.prepare")) + median(&format!("{contender}.cleanup"));
        assert!(median(&format!("{contender}.cycle")) > stages, "{figures}");
        assert!(
            done.out().matches(contender).count() >= 2,
            "{}",
            done.describe()
        );
    }
    // Each stage is measured apart, in milliseconds: only prepare sleeps.
    let slow = median("slow.prepare");
    assert!(
        slow >= 1000.0 && slow > median("slow.run") + 500.0,
        "{figures}"
    );
    assert!(fs::read_to_string(&svg).unwrap().ends_with("</svg>\n"));
    fs::remove_dir_all(directory).unwrap();
    assert_eq!(
        (left_of("bench-"), left_of("standby-")),
        (String::new(), String::new())
    );
    assert_eq!(sh("ls -d /var/lib/nspawn-bench* 2>/dev/null").out(), "");
}

#[test]
fn bench_refuses_invalid_options() {
    for (options, words) in [
        (&["--rounds=0"][..], "--rounds needs a number"),
        (&["--only=nobody"], "no contender 'nobody'"),
        (&["--peer=x"], "needs NAME=PREPARE|RUN|CLEANUP"),
        (&["--image=nowhere"], "no image"),
        (&["--nonsense"], "unknown argument"),
        (&["--rounds"], "has no value"),
    ] {
        let done = finish(std::process::Command::new("bench").args(options), b"").expect(1);
        assert!(
            done.err().starts_with("bench: ") && done.err().contains(words),
            "{}",
            done.describe()
        );
    }
}
