//! The result of a command is the status or the signal that it ends with.

use nspawn_tests::gitlab_runner::{Attempt, Failure, Job, Runner};
use nspawn_tests::{SIGNALS, image};

use crate::suite::{Suite, machine};

const CODES: [i32; 9] = [1, 2, 42, 125, 126, 127, 128, 254, 255];

pub fn rows(suite: &mut Suite) {
    let tries = suite.times(2, 20);
    suite.row(
        "a command ends with each of 9 statuses and 6 signals",
        tries,
        |_| {
            let machine = machine(&[]);
            machine.sh("exit 0").expect(0);
            machine.check_exit_statuses(&CODES);
        },
    );
    suite.row(
        "a job's script ends with each of 9 statuses and 6 signals",
        tries,
        |_| {
            let (runner, mut job) = (Runner::default(), Job::new(&image()).script(&["true"]));
            for code in CODES {
                job = job.stage(&format!("step_{code}"), &[&format!("exit {code}")]);
            }
            for (signal, number) in SIGNALS {
                let script = format!("#!/bin/sh\nulimit -c 0; kill -{signal} $$\n");
                job = job.stage_file(&format!("step_{}", 128 + number), &script);
            }
            let attempt = Attempt::prepared(&runner, &job);
            attempt.run_stage("build_script").expect();
            for code in CODES
                .into_iter()
                .chain(SIGNALS.map(|(_, number)| 128 + number))
            {
                let record = attempt.run_stage(&format!("step_{code}"));
                assert_eq!(
                    record.result,
                    Err(Failure::Script(code)),
                    "{}",
                    record.describe()
                );
            }
            attempt.cleanup().expect();
        },
    );
}
