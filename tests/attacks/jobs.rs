//! GitLab jobs that try to change their own machine, with variables that look like those of the
//! runner.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};

use nspawn_tests::gitlab_runner::{Job, Outcome, Runner};
use nspawn_tests::{image, sh};
use serde_json::{Value, json};

use crate::suite::Fixture;
use crate::suite::{Control, Outside, Suite};

/// Options of nspawn-prepare that remove isolation and limits, as variables.
const OPTIONS: [(&str, &str); 17] = [
    ("NSPAWN_BIND", "/etc:/host"),
    ("NSPAWN_PRIVATE_USERS", "no"),
    ("NSPAWN_NETWORK", "host"),
    ("NSPAWN_LAYER_SIZE", "infinity"),
    ("NSPAWN_PROPERTY", "TasksMax=infinity DevicePolicy=auto"),
    ("NSPAWN_ALLOW_ADDRESS_FAMILY", "AF_ALG"),
    ("NSPAWN_CAPABILITY", "all"),
    ("NSPAWN_SYSTEM_CALL_FILTER", "keyctl bpf"),
    ("NSPAWN_NESTING", "yes"),
    ("NSPAWN_ALLOW_IMAGE", "no-such-image"),
    ("NSPAWN_SETENV", "LD_PRELOAD=/evil"),
    ("NSPAWN_IMAGE", "no-such-image"),
    ("NSPAWN_NAME", "forged"),
    ("NSPAWN_KEEP", "always"),
    ("NSPAWN_MAX_MACHINES", "1"),
    ("NSPAWN_DRY_RUN", "yes"),
    ("NSPAWN_UID", "nobody"),
];
/// Number of the first options, which the control sets as a runner.
const RUNNER_OPTIONS: usize = 6;
/// Properties of a machine that these options change.
const CHANGED: [&str; 6] = [
    "command",
    "private_users",
    "network",
    "layer_size",
    "properties",
    "address_families",
];

/// Settings of a job (README, "Limits, networks, privileges") that would widen its limits, or set
/// another property.
const JOB_SETTINGS: [(&str, &str); 12] = [
    ("NSPAWN_JOB_MEMORY_MAX", "infinity"),
    ("NSPAWN_JOB_MEMORY_MAX", "100T"),
    ("NSPAWN_JOB_MEMORY_MAX", "1G DevicePolicy=auto"),
    ("NSPAWN_JOB_TASKS_MAX", "infinity"),
    ("NSPAWN_JOB_TASKS_MAX", "99999999"),
    ("NSPAWN_JOB_CPU_QUOTA", "infinity"),
    ("NSPAWN_JOB_CPU_QUOTA", "10%\nDevicePolicy=auto"),
    ("NSPAWN_JOB_LAYER_SIZE", "infinity"),
    ("NSPAWN_JOB_LAYER_SIZE", "8T"),
    ("NSPAWN_JOB_NETWORK", "host"),
    ("NSPAWN_JOB_NETWORK", "none --private-users=no"),
    ("NSPAWN_JOB_NETWORK", "namespace=/proc/1/ns/net"),
];

/// Properties of the unit that limit the machine.
const PROPERTIES: &str = "MemoryMax,TasksMax,CPUQuotaPerSecUSec,DevicePolicy,DeviceAllow,RuntimeMaxUSec,Slice,Delegate,PrivateMounts,Environment";

pub fn rows(suite: &mut Suite, _field: &Fixture) {
    suite.row(
        "variables of a job with the names of nspawn-prepare's options",
        || {
            let honest = description(&Runner::default(), Job::new(&image()));
            let forged = OPTIONS
                .iter()
                .fold(Job::new(&image()), |job, (name, value)| {
                    job.variable(name, value)
                });
            assert_eq!(description(&Runner::default(), forged), honest);
            let runner = OPTIONS[..RUNNER_OPTIONS]
                .iter()
                .fold(Runner::default(), |runner, (name, value)| {
                    runner.variable(name, value)
                });
            let bare = description(&runner, Job::new(&image()));
            for key in CHANGED {
                assert_ne!(
                    bare[key], honest[key],
                    "the runner's options don't change {key}, so the attack proves nothing"
                );
            }
            Control::Unconfined
        },
    );
    suite.row("variables of a job with the names of the runner's: response, image, number", || {
        let outside = Outside::new();
        let response =
            r#"{"id": 1, "image": {"name": "no-such-image"}, "git_info": {"repo_url": "https://evil.example/x"}}"#;
        fs::write(outside.path.join("response"), response).unwrap();
        let honest = description(&Runner::default(), Job::new(&image()));
        let path = outside.file("response");
        let forged = [
            ("JOB_RESPONSE_FILE", &*path),
            ("CI_JOB_IMAGE", "no-such-image"),
            ("CI_JOB_ID", "1"),
            ("CI_SERVER_URL", "https://evil.example"),
            ("BUILD_EXIT_CODE_FILE", &outside.file("secret")),
            ("BUILD_FAILURE_EXIT_CODE", "0"),
            ("SYSTEM_FAILURE_EXIT_CODE", "0"),
            ("TMPDIR", &outside.file("")),
        ];
        let before = outside.state();
        let forged = forged.iter().fold(Job::new(&image()), |job, (name, value)| job.variable(name, value));
        assert_eq!(description(&Runner::default(), forged), honest);
        assert_eq!(outside.state(), before);
        let old = Runner::old().run(&Job::new(&image()).variable("CI_JOB_IMAGE", "no-such-image"));
        assert!(old.log().contains("no-such-image"), "the control does not get in, so the attack proves nothing: {}", old.describe());
        Control::Host
    });
    suite.row(
        "variables of a job that select programs of the host: PATH, LD_PRELOAD",
        programs_are_those_of_the_host,
    );
    suite.row("settings of a job that would widen its limits", || {
        for (name, value) in JOB_SETTINGS {
            let report = Job::new(&image())
                .variable(name, value)
                .script(&["echo too far"])
                .run();
            assert_eq!(
                report.outcome,
                Outcome::ScriptFailure(1),
                "{name}={value}: {}",
                report.describe()
            );
        }
        Control::Absent
    });
    suite.row(
        "image names of a job that are paths, options or several lines",
        image_names_are_refused,
    );
}

/// Returns the properties of a job's machine, without those that differ for each machine.
fn description(runner: &Runner, job: Job) -> Value {
    let description = Arc::new(Mutex::new(Value::Null));
    let result = Arc::clone(&description);
    let job = job
        .script(&["echo now", "sleep 0.5"])
        .at_log("now", move |moment| {
            *result.lock().unwrap() = describe(moment.machine());
        });
    let _ = runner.run(&job).expect(&Outcome::Success);
    let description = description.lock().unwrap();
    assert_ne!(*description, Value::Null);
    description.clone()
}

fn describe(machine: &str) -> Value {
    let anonymous = |text: String| text.replace(machine, "NAME");
    let state =
        anonymous(fs::read_to_string(format!("/run/nspawn-ci/{machine}/state.json")).unwrap());
    let mut state: Value = serde_json::from_str(&state).unwrap();
    // These numbers depend on the free space and on the time.
    state["layer_size"] = json!(state["layer_size"].is_number());
    state["created_monotonic_usec"] = json!(state["created_monotonic_usec"].is_number());
    let unit = format!("nspawn-{machine}.service");
    let process = format!("$(systemctl show --property=MainPID --value {unit})");
    let command = sh(&format!(
        "tr '\\0' '\\n' </proc/{process}/cmdline | grep -v ^--private-users=[1-9]"
    ))
    .expect(0)
    .out();
    state["command"] = json!(anonymous(command));
    let properties = sh(&format!("systemctl show --property={PROPERTIES} {unit}"))
        .expect(0)
        .out();
    state["properties"] = json!(anonymous(properties));
    state
}

fn programs_are_those_of_the_host() -> Control {
    let outside = Outside::new();
    for program in [
        "systemd-run",
        "systemctl",
        "mkfs.ext4",
        "mount",
        "pasta",
        "systemd-nspawn",
        "machinectl",
    ] {
        let path = outside.path.join(program);
        fs::write(
            &path,
            format!("#!/bin/sh\necho evil >>{}\nexit 1\n", outside.file("evil")),
        )
        .unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", outside.path.display());
    let path = format!("{path}:{}", std::env::var("PATH").unwrap());
    let variables = [
        ("PATH", &*path),
        ("LD_PRELOAD", &outside.file("evil.so")),
        ("BASH_ENV", &outside.file("mount")),
    ];
    let before = outside.state();
    let forged = variables
        .iter()
        .fold(Job::new(&image()), |job, (name, value)| {
            job.variable(name, value)
        });
    let _ = Runner::default()
        .run(&forged.stage_file("build_script", "#!/bin/sh\nexit 7\n"))
        .expect(&Outcome::ScriptFailure(7));
    assert_eq!(outside.state(), before);
    let report = Runner::default()
        .variable("PATH", &path)
        .run(&Job::new(&image()).script(&["true"]));
    assert!(
        fs::exists(outside.path.join("evil")).unwrap(),
        "the control does not get in, so the attack proves nothing: {}",
        report.describe()
    );
    Control::Host
}

fn image_names_are_refused() -> Control {
    let outside = Outside::new();
    // The path leads to a valid image.
    std::os::unix::fs::symlink(
        format!("/var/lib/machines/{}", image()),
        outside.path.join("image"),
    )
    .unwrap();
    let path = outside.file("image");
    let above = format!("../../../..{path}");
    let line = format!("x\n{}", image());
    for name in [
        &*path,
        &above,
        &line,
        ".",
        "..",
        "/",
        "--private-users=no",
        "-",
        "*",
    ] {
        let report = Runner::default().run(&Job::new(name).script(&["echo too far"]));
        assert!(
            matches!(report.outcome, Outcome::ScriptFailure(_)),
            "{name:?}: {}",
            report.describe()
        );
    }
    Control::Absent
}
