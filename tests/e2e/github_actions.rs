//! Jobs of GitHub's runner: `github-actions-hook`, called as the runner calls its container hooks.

mod requests;
mod runner;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nspawn_tests::{call, left_of, remove_stale, sh, wait_until};
use serde_json::{Value, json};

use runner::{Runner, hook, wait_for_end};

const LIMIT: Duration = Duration::from_secs(60);

fn signal(child: &Child, name: &str) {
    call("kill", ["-s", name, &child.id().to_string()]).expect(0);
}

#[test]
fn job_runs_in_a_machine_until_its_cleanup() {
    let mut runner = Runner::new();
    runner.call("prepare_job", &runner.job()).expect(0);
    let machine = runner.machine();
    let response = runner.response();
    assert_eq!(
        response["context"],
        json!({ "container": { "id": machine } }),
        "{response}"
    );
    assert_eq!(response["isAlpine"], false, "{response}");
    runner.program("externals/node20/bin/node", "#!/bin/sh\necho node \"$@\"\n");
    let script = "systemctl is-system-running; hostname; pwd; echo $HOME $OF_JOB $CI; /__e/node20/bin/node x\n\
        echo product >product; mkdir -p deep/er; echo A=B >>/__w/_temp/_runner_file_commands/set_env\n\
        touch \"deep/user's\"; chown 1002:1002 deep/user*; tar -C deep -c . | tar -C /github/home -xp\n\
        ! touch /__e/x 2>/dev/null; touch /github/home/x; test ! -e /var/run/docker.sock; cat; exit 7";
    let done = runner.run(script).expect(7);
    let expected = format!("running\n{machine}\n/__w/it/it\n/github/home job true\nnode x\n");
    assert_eq!(done.out(), expected, "{}", done.describe());
    for (name, owner) in [
        ("it/it/product", 0),
        ("it/it/deep/er", 0),
        ("it/it/deep/user's", 1002),
        ("_temp/_runner_file_commands/set_env", 0),
        ("_temp/_github_home/x", 0),
    ] {
        let file = fs::metadata(runner.path("_work").join(name)).unwrap();
        assert_eq!((file.uid(), file.gid()), (owner, owner), "{name}");
    }
    assert_eq!(runner.run("kill -KILL $$").code(), 137);
    runner.call("cleanup_job", &json!({})).expect(0);
    assert_eq!(left_of(&machine), "");
    runner.call("cleanup_job", &Value::Null).expect(0);
    runner.state = Value::Null;
    runner.call("cleanup_job", &json!({})).expect(0);
}

#[test]
fn variables_and_arguments_arrive_unchanged() {
    let mut runner = Runner::with_job();
    let odd = "it's \"$(id)\" `id`\n\\ # %s ä";
    runner.program("_work/_tool/a b/tool", "#!/bin/sh\necho tool $PATH\n");
    fs::create_dir(runner.path("_work/it/-odd dir:")).unwrap();
    let mut step = runner.step("printenv INPUT_FETCH-DEPTH LD_PRELOAD NSPAWN_UID; pwd; tool");
    step["environmentVariables"] = json!({ "INPUT_FETCH-DEPTH": odd, "LD_PRELOAD": "", "NSPAWN_UID": "nobody", "EMPTY": null });
    step["workingDirectory"] = json!("/__w/it/-odd dir:");
    for paths in [
        json!("/__w/_tool/a b:/none"),
        json!(["/__w/_tool/a b", "/none"]),
    ] {
        step["prependPath"] = paths;
        let done = runner.call("run_script_step", &step).expect(0);
        let start = format!(
            "{odd}\n\nnobody\n/__w/it/-odd dir:\ntool /__w/_tool/a b:/none:/usr/local/sbin:"
        );
        assert!(done.out().starts_with(&start), "{}", done.describe());
    }
    // The runner splits the arguments at blanks.
    step["entryPointArgs"] = r#"-c 'printf "%s|" "$@"' - "a  b" $HOME "\"" --help"#
        .split(' ')
        .collect();
    assert_eq!(
        runner.call("run_script_step", &step).expect(0).out(),
        "a  b|$HOME|\"|--help|"
    );
}

#[test]
fn container_action_runs_in_a_machine_of_its_own() {
    let mut runner = Runner::with_job();
    let mut action = runner.action();
    action["entryPoint"] = json!("sh");
    action["entryPointArgs"] = json!([
        "-c",
        "\"hostname;",
        "pwd;",
        "printenv",
        "OF_JOB;",
        "echo",
        "x",
        ">x;",
        "exit",
        "5\""
    ]);
    let done = runner.call("run_container_step", &action).expect(5);
    let out = done.out();
    let (machine, rest) = out.split_once('\n').unwrap();
    assert_eq!(rest, "/github/workspace\njob\n", "{}", done.describe());
    assert_ne!(machine, runner.machine());
    assert_eq!(left_of(machine), "");
    assert_eq!(fs::read(runner.path("_work/it/it/x")).unwrap(), b"x\n");
    // Images have no entrypoint, so the arguments form the command.
    action["entryPoint"] = Value::Null;
    action["entryPointArgs"] = json!(["echo", "\"a", "b\""]);
    assert_eq!(
        runner.call("run_container_step", &action).expect(0).out(),
        "a b\n"
    );
}

#[test]
fn alpine_image_is_reported_to_the_runner() {
    let mut runner = Runner::new();
    runner.binds = "/etc/passwd:/etc/alpine-release";
    runner.call("prepare_job", &runner.job()).expect(0);
    assert_eq!(runner.response()["isAlpine"], true);
    assert_ne!(runner.machines(), "");
    runner.call("cleanup_job", &json!({})).expect(0);
}

#[test]
fn prepare_without_a_response_file_leaves_no_machine() {
    let runner = Runner::new();
    let request = json!({ "command": "prepare_job", "args": runner.job(), "responseFile": "/nowhere/response" });
    let done = wait_for_end(runner.start(runner.raw(request.to_string().as_bytes()))).expect(1);
    done.expect_err("No such file or directory: '/nowhere/response'");
    assert_eq!(runner.machines(), "");
}

#[test]
fn cancelled_step_ends_and_its_machine_goes_on() {
    let mut runner = Runner::with_job();
    let up = runner.path("_work/_temp/up");
    // The runner sends SIGINT, then SIGTERM, and SIGKILL as the last resort.
    for (script, signals, expected) in [
        ("exec sleep 600", &["INT"][..], 2),
        (
            "trap '' INT TERM; while :; do sleep 0.1; done",
            &["INT", "TERM"],
            2,
        ),
        (
            "trap '' INT TERM; while :; do sleep 0.1; done",
            &["KILL"],
            9,
        ),
    ] {
        let mut step = runner.step(&format!("touch /__w/_temp/up; {script}"));
        step["environmentVariables"] = json!({ "SECRET": "not-to-be-seen" });
        let child = runner.start(runner.request("run_script_step", &step));
        wait_until("the step runs", LIMIT, || up.exists());
        sh("! grep --text --quiet not-to-be-see[n] /proc/[0-9]*/cmdline").expect(0);
        for name in signals {
            signal(&child, name);
        }
        let done = wait_for_end(child);
        assert_eq!(
            done.status.signal(),
            Some(expected),
            "{signals:?}: {}",
            done.describe()
        );
        fs::remove_file(&up).unwrap();
        // The processes of a killed nspawn-run may take a moment to end.
        runner
            .run("until ! pgrep --exact sleep; do sleep 0.05; done >/dev/null")
            .expect(0);
    }
}

#[test]
fn cancelled_prepare_leaves_nothing() {
    let runner = Runner::new();
    let child = runner.start(runner.request("prepare_job", &runner.job()));
    let words = format!(
        "cat /proc/$(pgrep --parent {} nspawn-prepare)/cmdline 2>/dev/null | tr '\\0' '\\n'",
        child.id()
    );
    let name = || {
        sh(&words)
            .out()
            .lines()
            .find_map(|word| word.strip_prefix("--name=").map(str::to_owned))
    };
    wait_until("the machine is being made", LIMIT, || {
        name().is_some_and(|name| !left_of(&name).is_empty())
    });
    let name = name().unwrap();
    signal(&child, "INT");
    assert_ne!(wait_for_end(child).status.code(), Some(0));
    assert_eq!(runner.response(), Value::Null);
    assert_eq!(left_of(&name), "");
}

#[test]
fn machine_of_a_killed_worker_is_stale() {
    let mut runner = Runner::new();
    let request = runner.request("prepare_job", &runner.job());
    let mut worker = Command::new("bash")
        .args(["-c", "bash -e \"$0\" && echo prepared && exec sleep 600"])
        .arg(hook())
        .stdin(request)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Read::read_exact(worker.stdout.as_mut().unwrap(), &mut [0; 9]).unwrap();
    runner.state = runner.response()["state"].clone();
    remove_stale();
    runner.run("true").expect(0);
    worker.kill().unwrap();
    worker.wait().unwrap();
    remove_stale();
    assert_eq!(left_of(&runner.machine()), "");
    runner.run("true").expect(125);
}
