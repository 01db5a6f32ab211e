//! The machine dies under a command. The error names the cause: status 125 outside of GitLab, a
//! system failure in a job.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nspawn_tests::gitlab_runner::Job;
use nspawn_tests::{BackgroundCommand, image, sh};

use crate::suite::{Suite, machine};

/// Time limit for the error.
const LIMIT: Duration = Duration::from_secs(5);

/// Deaths of a machine, a shell command of the host that causes each, and parts of the error, with
/// `|` between alternatives.
const DEATHS: [(&str, &str, &str); 6] = [
    (
        "poweroff in the machine",
        "nspawn-run NAME systemctl poweroff",
        "it was shut down",
    ),
    (
        "reboot in the machine",
        "nspawn-run NAME systemctl reboot",
        "it was rebooted",
    ),
    // A systemd after 257 ends the machine's PID 1 instead of the unit.
    (
        "machinectl terminate",
        "machinectl terminate NAME",
        "its unit was stopped|it was shut down",
    ),
    (
        "machinectl poweroff",
        "machinectl poweroff NAME",
        "it was shut down",
    ),
    (
        "SIGKILL of PID 1",
        "kill -KILL $(machinectl show --property=Leader --value NAME)",
        "its PID 1 ended",
    ),
    (
        "its unit is stopped",
        "systemctl stop nspawn-NAME.service",
        "its unit was stopped",
    ),
];

/// A command that ends with status 0 if it gets SIGTERM and has the time.
const COMMAND: &str = "trap 'exit 0' TERM; echo on; sleep 600 & wait";

pub fn rows(suite: &mut Suite) {
    let tries = suite.times(2, 20);
    for (death, line, cause) in DEATHS {
        suite.row(
            &format!("the machine dies under a command: {death}"),
            tries,
            |number| {
                if number % 2 == 0 {
                    die_outside_gitlab(line, cause, number)
                } else {
                    die_in_job(line, cause)
                }
            },
        );
    }
}

fn die_outside_gitlab(line: &str, cause: &str, number: u32) {
    let machine = machine(&[]);
    // A shutdown ends cgroups in the order of their names, which are numbers.
    (0..number % 16).for_each(|_| drop(machine.run(["true"]).expect(0)));
    let running = BackgroundCommand::start(&machine, COMMAND);
    let started = Instant::now();
    // The machine's death may end this command too.
    sh(&format!(
        "({}) >/dev/null 2>&1 &",
        line.replace("NAME", &machine.name)
    ));
    let done = running.wait();
    let (code, stderr) = (done.status.code(), done.err());
    assert_eq!(code, Some(125), "{stderr}");
    assert!(is_named(cause, &stderr), "no {cause:?} in {stderr:?}");
    assert!(started.elapsed() < LIMIT, "took {:?}", started.elapsed());
}

/// Returns whether `text` has one of the alternatives of `cause`.
fn is_named(cause: &str, text: &str) -> bool {
    cause.split('|').any(|cause| text.contains(cause))
}

fn die_in_job(line: &str, cause: &str) {
    let died = Arc::new(Mutex::new(None));
    let (line, time_of_death) = (line.to_owned(), Arc::clone(&died));
    let job = Job::new(&image())
        .script(&["trap 'exit 0' TERM", "echo now", "sleep 600 & wait"])
        .at_log("now", move |moment| {
            *time_of_death.lock().unwrap() = Some(Instant::now());
            // The command is no stage of this job.
            let line = line.replace("NAME", moment.machine());
            sh(&format!(
                "(env --unset=CUSTOM_ENV_CI_JOB_ID {line}) >/dev/null 2>&1 &"
            ));
        });
    let report = job.run().expect_system_failure();
    let took = died.lock().unwrap().expect("the job never ran").elapsed();
    assert!(is_named(cause, &report.log()), "{}", report.describe());
    // The stages after the script count too.
    assert!(took < LIMIT + Duration::from_secs(2), "took {took:?}");
}
