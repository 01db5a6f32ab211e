//! Slurm with a cluster of one node, whose jobs run in machines.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use nspawn_tests::{call, finish, image, left_of, sh, wait_until};

use crate::host::{Host, SOON, recipe};

const OUTPUT: &str = "/run/e2e-slurm";

struct Slurm {
    _host: Host,
    job: PathBuf,
}

impl Slurm {
    fn start() -> Self {
        let slurm = Self {
            _host: Host::new(),
            job: recipe("slurm", "job"),
        };
        clear();
        for file in ["slurm.conf", "epilog"] {
            fs::copy(recipe("slurm", file), format!("/etc/slurm/{file}")).unwrap();
        }
        fs::set_permissions("/etc/slurm/epilog", fs::Permissions::from_mode(0o755)).unwrap();
        fs::write("/etc/slurm/cgroup.conf", cgroups()).unwrap();
        sh("systemctl start munge slurmctld slurmd").expect(0);
        wait_until("the node is idle", SOON, || {
            call("sinfo", ["--noheader", "--format=%T"]).out() == "idle\n"
        });
        slurm
    }

    fn submit(&self, options: &[&str], command: &[&str]) -> Command {
        let mut submit = Command::new("sbatch");
        submit
            .args(["--parsable", "--output", OUTPUT])
            .args(options)
            .arg(&self.job)
            .arg(image())
            .args(command);
        submit
    }

    /// Submits a job whose command handles SIGTERM by a line of output, and continues. Waits until
    /// the command runs.
    fn running(&self, stop_timeout: &str) -> String {
        let command = "trap 'echo SIGTERM' TERM; echo up; while :; do sleep 0.1; done";
        let _ = fs::remove_file(OUTPUT);
        let mut submit = self.submit(&[], &["bash", "-c", command]);
        let job = finish(submit.env("NSPAWN_STOP_TIMEOUT", stop_timeout), b"")
            .expect(0)
            .out();
        wait_until("the command runs", SOON, || {
            output().lines().any(|line| line == "up")
        });
        job
    }
}

impl Drop for Slurm {
    fn drop(&mut self) {
        clear();
    }
}

fn clear() {
    let _ = sh(
        "systemctl stop slurmd slurmctld munge; cd /etc/slurm && rm -rf slurm.conf epilog cgroup.conf /run/e2e-slurm \
                /var/lib/slurm/slurm*/*; ls /run/nspawn-ci | grep ^slurm- | xargs --no-run-if-empty nspawn-cleanup",
    );
}

// A test host has remains of cgroup v1, with which slurmd does not start by default.
fn cgroups() -> &'static str {
    if image() == "bookworm" {
        "CgroupPlugin=cgroup/v1\n"
    } else {
        "CgroupPlugin=disabled\n"
    }
}

fn output() -> String {
    fs::read_to_string(OUTPUT).unwrap_or_default()
}

/// Waits until the node is free again. Returns the state and the exit code of a job.
fn end_of(job: &str) -> String {
    call("srun", ["--exclusive", "true"]).expect(0);
    let record = call("scontrol", ["--oneliner", "show", "job", job.trim_end()])
        .expect(0)
        .out();
    let value = |key: &str| {
        record
            .split(' ')
            .find_map(|word| word.strip_prefix(key))
            .unwrap_or("")
            .to_owned()
    };
    format!("{} {}", value("JobState="), value("ExitCode="))
}

#[test]
fn jobs_of_slurm_run_in_machines() {
    let slurm = Slurm::start();
    let job = finish(
        &mut slurm.submit(&[], &["systemctl", "is-system-running"]),
        b"",
    )
    .expect(0)
    .out();
    assert_eq!(
        (&*end_of(&job), output().lines().last()),
        ("COMPLETED 0:0", Some("running"))
    );
    let job = finish(&mut slurm.submit(&["--wait"], &["sh", "-c", "exit 7"]), b"")
        .expect(7)
        .out();
    assert_eq!(end_of(&job), "FAILED 7:0");
    let mut command = Command::new("srun");
    let done = finish(
        command
            .arg(&slurm.job)
            .args([&*image(), "sh", "-c", "cat; exit 9"]),
        b"in\0put",
    )
    .expect(9);
    assert_eq!(done.stdout, b"in\0put");
    assert_eq!(left_of("slurm-"), "");
    cancelled_job_ends_in_its_grace_period(&slurm);
    killed_job_is_cleaned_up_by_the_epilog(&slurm);
}

fn cancelled_job_ends_in_its_grace_period(slurm: &Slurm) {
    let job = slurm.running("1s");
    call("scancel", [job.trim_end()]).expect(0);
    assert_eq!(end_of(&job), "CANCELLED 0:15");
    assert_eq!(
        output().lines().last(),
        Some("nspawn-run: interrupted by SIGTERM"),
        "{}",
        output()
    );
    assert!(output().contains("\nSIGTERM\n"), "{}", output());
    assert_eq!(left_of("slurm-"), "");
}

/// The command runs longer than KillWait.
fn killed_job_is_cleaned_up_by_the_epilog(slurm: &Slurm) {
    let job = slurm.running("60s");
    call("scancel", [job.trim_end()]).expect(0);
    assert_eq!(end_of(&job), "CANCELLED 0:9");
    assert!(!output().contains("nspawn-run: "), "{}", output());
    assert_eq!(left_of("slurm-"), "");
    // The node accepts jobs again.
    assert_eq!(
        call("sinfo", ["--noheader", "--list-reasons"])
            .expect(0)
            .out(),
        ""
    );
}
