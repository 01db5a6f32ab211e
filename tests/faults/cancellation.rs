//! A cancelled job ends although its processes fork, leave their session and their cgroup, ignore
//! SIGTERM and hold its output open.

use std::time::Duration;

use nspawn_tests::gitlab_runner::{Job, Outcome, Reaction, Runner};
use nspawn_tests::image;

use crate::suite::Suite;

/// Grace period of the runner.
const GRACE: Duration = Duration::from_secs(2);

/// A script that starts such processes, prints `now`, and never ends.
const STUBBORN: &str = "#!/bin/bash
trap '' TERM HUP INT
setsid sh -c 'trap \"\" TERM HUP INT; (sleep 600; sleep 600) & sleep 600; sleep 600' &
for i in 1 2 3 4 5; do sh -c 'trap \"\" TERM; sleep 600; :' & done
nohup sleep 600 &
mkdir -p /sys/fs/cgroup/elsewhere
setsid sh -c 'echo $$ >/sys/fs/cgroup/elsewhere/cgroup.procs; trap \"\" TERM; sleep 600; sleep 600' &
until grep -q . /sys/fs/cgroup/elsewhere/cgroup.procs; do sleep 0.02; done
echo now
while :; do sleep 600; done
";
/// Fails if a process of the script is left.
const CHECK: &str = "pgrep -x sleep && exit 1; systemctl is-system-running; echo whole";

pub fn rows(suite: &mut Suite) {
    suite.row(
        "a job that ignores signals is cancelled, and its machine stays",
        suite.times(3, 20),
        |_| {
            let job = Job::new(&image())
                .stage_file("build_script", STUBBORN)
                .after_script(&[CHECK]);
            let runner =
                Runner::default().variable("NSPAWN_STOP_TIMEOUT", &format!("{}s", GRACE.as_secs()));
            let report = runner
                .run(&job.interrupt_at("now", Reaction::Canceling))
                .expect(&Outcome::Canceled);
            let script = report.stage("build_script");
            assert!(!script.killed, "{}", report.describe());
            assert!(
                (GRACE..GRACE + Duration::from_secs(2)).contains(&script.reaction),
                "took {:?}",
                script.reaction
            );
            assert_eq!(
                report.stage("after_script").text(),
                "running\nwhole\n",
                "{}",
                report.describe()
            );
        },
    );
}
