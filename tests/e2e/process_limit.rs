//! Machines whose process limit leaves no process for another command.

use std::process::Stdio;
use std::time::Duration;

use nspawn_tests::gitlab_runner::{Job, Outcome};
use nspawn_tests::{Machine, call, image, left_of, sh, wait_until};

/// Limits the number of processes of the machine's agent.
///
/// TasksMax= does the same where the kernel has the pids controller; tests/limits covers that. The
/// root of a test host lacks CAP_SYS_RESOURCE, so the machine's root sets the limit.
fn exhaust(machine: &Machine, limit: &str) {
    let line = format!(
        "set -e; found=; for pid in $(find /sys/fs/cgroup/machine.slice/machine-ci.slice/nspawn-{}.service \
             -name cgroup.procs -exec cat {{}} +); do \
         if tr '\\0' ' ' </proc/$pid/cmdline | grep -q '^/run/nspawn-ci/nspawn-run --agent'; then \
             nsenter --target=$pid --user prlimit --pid=$pid --nproc={limit}; found=yes; fi; done; test -n \"$found\"",
        machine.name
    );
    // A listed process may have ended in the meantime; then the search is repeated.
    wait_until("the agent is limited", Duration::from_secs(10), || {
        sh(&line).code() == 0
    });
}

#[test]
fn command_without_a_free_process_fails_clearly() {
    for init in ["systemd", "stub", "none"] {
        let machine = Machine::with(&[&format!("--init={init}"), "--network=none"]);
        let mut running = machine
            .command(["sleep", "600"])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_until("the command sleeps", Duration::from_secs(10), || {
            let line = format!(
                "grep -l 'nspawn-{}' $(pgrep -x sleep | sed 's|.*|/proc/&/cgroup|')",
                machine.name
            );
            sh(&line).code() == 0
        });
        exhaust(&machine, "1:4000");
        println!("--init={init}");
        machine.run(["true"]).expect_error(
            125,
            "it can't start another process: a limit inside the machine is reached",
        );
        exhaust(&machine, "4000:4000");
        machine.run(["true"]).expect(0);
        assert!(
            running.try_wait().unwrap().is_none(),
            "{init}: the other command was ended"
        );
        call("nspawn-cleanup", [&machine.name]).expect(0);
        assert_eq!(left_of(&machine.name), "");
        running.wait().unwrap();
    }
}

#[test]
fn job_that_exhausts_its_processes_is_a_script_failure() {
    let exhaust =
        "for pid in $(pgrep --full 'nspawn-run --agent$'); do prlimit --pid=$pid --nproc=1:1; done";
    let job = Job::new(&image())
        .stage("get_sources", &[exhaust])
        .script(&["true"]);
    let report = job.run();
    report.expect_log("it can't start another process");
    let _ = report.expect(&Outcome::ScriptFailure(1));
}
