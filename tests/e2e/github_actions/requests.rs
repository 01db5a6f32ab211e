//! Requests that the hook refuses.

use std::os::unix::fs::symlink;

use serde_json::{Value, json};

use super::runner::{Runner, wait_for_end};

/// Sets a value in the arguments of a request.
fn with_value(mut args: Value, path: &str, value: Value) -> Value {
    match args.pointer_mut(path) {
        Some(place) => *place = value,
        None => args[&path[1..]] = value,
    }
    args
}

#[test]
fn unsupported_requests_are_refused() {
    let mut runner = Runner::new();
    runner.state = json!({ "machine": "no-such-machine" });
    let (job, action, step) = (runner.job(), runner.action(), runner.step("true"));
    symlink("/etc", runner.path("_work/it/link")).unwrap();
    let link =
        json!([{ "sourceVolumePath": runner.path("_work/it/link/ssl"), "targetVolumePath": "/x" }]);
    let large = json!({ "LARGE": "x".repeat(200_000) });
    for (command, args, words) in [
        (
            "prepare_job",
            with_value(job.clone(), "/container", Value::Null),
            "give it 'container: IMAGE'",
        ),
        (
            "prepare_job",
            with_value(job.clone(), "/services", json!([{ "image": "redis" }])),
            "'services:' are not supported",
        ),
        (
            "prepare_job",
            with_value(job.clone(), "/container/createOptions", json!("--cpus 1")),
            "can't use 'options:'",
        ),
        (
            "prepare_job",
            with_value(job.clone(), "/container/portMappings", json!(["80:80"])),
            "can't use 'ports:'",
        ),
        (
            "prepare_job",
            with_value(job.clone(), "/container/userMountVolumes", link.clone()),
            "can't use 'volumes:'",
        ),
        (
            "prepare_job",
            with_value(job.clone(), "/container/systemMountVolumes", link),
            "without symbolic links",
        ),
        (
            "prepare_job",
            with_value(job.clone(), "/container/image", json!("no-such:image")),
            "no-such:image",
        ),
        (
            "prepare_job",
            with_value(job.clone(), "/container/image", json!("--help")),
            "--help",
        ),
        (
            "prepare_job",
            with_value(job.clone(), "/container/image", json!("../a\nb")),
            "a",
        ),
        (
            "prepare_job",
            with_value(
                job.clone(),
                "/container/environmentVariables",
                json!({ "A=\nB": "" }),
            ),
            r"'A=\nB'",
        ),
        (
            "prepare_job",
            with_value(
                job.clone(),
                "/container/environmentVariables",
                json!({ "A": "\0" }),
            ),
            "null byte",
        ),
        (
            "prepare_job",
            with_value(
                job.clone(),
                "/container/environmentVariables",
                large.clone(),
            ),
            "list too long",
        ),
        (
            "run_container_step",
            with_value(action.clone(), "/dockerfile", json!("Dockerfile")),
            "from a Dockerfile",
        ),
        ("run_container_step", action.clone(), "names no command"),
        (
            "run_script_step",
            with_value(step.clone(), "/entryPointArgs", json!(["'open"])),
            "No closing quotation",
        ),
        (
            "run_script_step",
            with_value(step.clone(), "/environmentVariables", large),
            "Argument list too long",
        ),
        (
            "run_script_step",
            Value::Null,
            "not a request of GitHub's runner",
        ),
        ("run_jobs\n", json!({}), r"unknown command 'run_jobs\n'"),
    ] {
        let done = runner.call(command, &args).expect_error(1, words);
        assert_eq!(runner.response(), Value::Null, "{}", done.describe());
    }
}

#[test]
fn steps_without_a_machine_fail() {
    let mut runner = Runner::new();
    runner.state = json!({ "machine": "no-such-machine" });
    let step = runner.step("true");
    runner
        .call("run_script_step", &step)
        .expect_error(125, "no-such-machine");
    let action = runner.action();
    let action = with_value(
        with_value(action, "/image", json!("none")),
        "/entryPoint",
        json!("true"),
    );
    runner
        .call("run_container_step", &action)
        .expect_error(125, "none");
}

#[test]
fn malformed_requests_are_refused() {
    let runner = Runner::new();
    for bytes in [
        &b""[..],
        b"{",
        b"[]",
        b"null",
        b"{\"command\": []}",
        b"\xff",
        &b"[".repeat(100_000),
    ] {
        let done = wait_for_end(runner.start(runner.raw(bytes)));
        done.expect_error(1, "not a request of GitHub's runner");
    }
}
