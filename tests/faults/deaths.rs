//! The machine dies under a command: 125 outside GitLab, a system failure inside, with the cause.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nspawn_tests::gitlab_runner::Job;
use nspawn_tests::{BackgroundCommand, image, sh};

use crate::suite::{Suite, machine};

const LIMIT: Duration = Duration::from_secs(5);

/// What it dies of, who does that, and what is said.
const DEATHS: [(&str, &str, &str); 6] = [
    (
        "poweroff from inside",
        "nspawn-run NAME systemctl poweroff",
        "it was shut down",
    ),
    (
        "reboot from inside",
        "nspawn-run NAME systemctl reboot",
        "it was rebooted",
    ),
    // Since some version after 257 it ends the machine's PID 1.
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
        "SIGKILL of its PID 1",
        "kill -KILL $(machinectl show --property=Leader --value NAME)",
        "its PID 1 was ended",
    ),
    (
        "its unit stopped",
        "systemctl stop nspawn-NAME.service",
        "its unit was stopped",
    ),
];

/// It calls its end a success, if it is asked to end and has the time.
const SUCCESSFUL: &str = "trap 'exit 0' TERM; echo on; sleep 600 & wait";

pub fn rows(suite: &mut Suite) {
    let tries = suite.times(2, 20);
    for (death, line, cause) in DEATHS {
        suite.row(
            &format!("machine dies in mid-command: {death}"),
            tries,
            |number| {
                if number % 2 == 0 {
                    outside(line, cause, number)
                } else {
                    inside(line, cause)
                }
            },
        );
    }
}

fn outside(line: &str, cause: &str, number: u32) {
    let machine = machine(&[]);
    // The order in which a shutdown ends cgroups goes by their names, which are numbers.
    (0..number % 16).for_each(|_| drop(machine.run(["true"]).expect(0)));
    let running = BackgroundCommand::start(&machine, SUCCESSFUL);
    let started = Instant::now();
    // Its own status tells of the death too, or not.
    sh(&format!(
        "({}) >/dev/null 2>&1 &",
        line.replace("NAME", &machine.name)
    ));
    let done = running.end();
    let (code, said) = (done.status.code(), done.err());
    assert_eq!(code, Some(125), "{said}");
    assert!(is_named(cause, &said), "no {cause:?} in {said:?}");
    assert!(started.elapsed() < LIMIT, "took {:?}", started.elapsed());
}

// Any of those between bars.
fn is_named(cause: &str, said: &str) -> bool {
    cause.split('|').any(|cause| said.contains(cause))
}

fn inside(line: &str, cause: &str) {
    let died = Arc::new(Mutex::new(None));
    let (line, note) = (line.to_owned(), Arc::clone(&died));
    let job = Job::new(&image())
        .script(&["trap 'exit 0' TERM", "echo now", "sleep 600 & wait"])
        .at_log("now", move |moment| {
            *note.lock().unwrap() = Some(Instant::now());
            // Not as this job's own stage.
            let line = line.replace("NAME", moment.machine());
            sh(&format!(
                "(env --unset=CUSTOM_ENV_CI_JOB_ID {line}) >/dev/null 2>&1 &"
            ));
        });
    let report = job.run().expect_system_failure();
    let took = died.lock().unwrap().expect("the job never ran").elapsed();
    assert!(is_named(cause, &report.log()), "{}", report.describe());
    // What comes after the script counts too, and takes a moment.
    assert!(took < LIMIT + Duration::from_secs(2), "took {took:?}");
}
