//! Jobs whose runners have fallen silent, and retries of failed jobs.
//!
//! A runner falls silent when its host dies.
//!
//! In GitLab these are `Ci::StuckBuilds`, which gives a runner an hour, and `Ci::RetryJobService`.

use std::time::{Duration, Instant};

use super::jobs::Jobs;
use super::{ServerJob, Status};

/// Reason of failure of a job whose runner has fallen silent.
pub const STUCK: &str = "stuck_or_timeout_failure";

impl Jobs {
    /// Fails all jobs whose runners have sent nothing for `silence`.
    pub fn fail_stuck(&mut self, silence: Duration, now: Instant) {
        let is_stuck =
            |job: &&mut ServerJob| job.status.is_open() && job.last_contact + silence <= now;
        let mut failed = Vec::new();
        for job in self.all.values_mut().filter(is_stuck) {
            job.status = Status::Failed;
            STUCK.clone_into(&mut job.reason);
            failed.push(job.id);
        }
        failed.into_iter().for_each(|id| self.retry(id));
    }

    /// Returns when the next job is stuck if no runner sends anything.
    pub fn next_stuck(&self, silence: Duration) -> Option<Instant> {
        self.all
            .values()
            .filter(|job| job.status.is_open())
            .map(|job| job.last_contact + silence)
            .min()
    }

    /// Adds a retry of a failed job, if `retry:` permits it and the job has none.
    pub fn retry(&mut self, id: u64) {
        let Some(failed) = self.all.get(&id) else {
            return;
        };
        let is_due = failed.status == Status::Failed && failed.retried_as.is_none();
        let is_wanted = failed.job.retry_when.contains(&failed.reason);
        let Some(retries_left) = failed.retries_left.checked_sub(1) else {
            return;
        };
        if is_due && is_wanted {
            let job = failed.job.clone();
            let retry = self.add_with_retries(job, retries_left);
            self.all
                .entry(id)
                .and_modify(|job| job.retried_as = Some(retry));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::job::Job;

    const SILENCE: Duration = Duration::from_secs(10);

    /// Adds a job, which a runner takes, and returns its ID.
    fn add_taken(jobs: &mut Jobs, job: Job) -> u64 {
        let id = jobs.add(Arc::new(job));
        assert_eq!(jobs.next("host").unwrap()["id"], id);
        id
    }

    #[test]
    fn job_fails_and_is_retried_when_its_runner_falls_silent() {
        let mut jobs = Jobs::default();
        let first = add_taken(&mut jobs, Job::new("a").retry(1, &[STUCK]));
        let contact = jobs.all[&first].last_contact;
        assert_eq!(jobs.next_stuck(SILENCE), Some(contact + SILENCE));
        jobs.fail_stuck(SILENCE, contact + SILENCE - Duration::from_millis(1));
        assert_eq!(jobs.all[&first].status, Status::Running);
        jobs.fail_stuck(SILENCE, contact + SILENCE);
        let job = &jobs.all[&first];
        assert_eq!((job.status, &*job.reason), (Status::Failed, STUCK));
        let second = job.retried_as.unwrap();
        assert_eq!(jobs.next("other").unwrap()["id"], second);
        assert_eq!(
            (&*jobs.all[&first].runner, &*jobs.all[&second].runner),
            ("host", "other")
        );
        jobs.fail_stuck(SILENCE, jobs.all[&second].last_contact + SILENCE);
        assert_eq!(
            (jobs.all[&second].status, jobs.all[&second].retried_as),
            (Status::Failed, None)
        );
        assert_eq!((jobs.next_stuck(SILENCE), jobs.next("other")), (None, None));
    }

    #[test]
    fn job_is_retried_once_and_for_the_named_reasons_only() {
        let mut jobs = Jobs::default();
        for (state, reason, count) in [
            ("failed", "script_failure", 0),
            ("failed", "runner_system_failure", 1),
            ("success", "", 0),
            ("running", "", 0),
        ] {
            let id = add_taken(
                &mut jobs,
                Job::new("a").retry(2, &[STUCK, "runner_system_failure"]),
            );
            jobs.all
                .get_mut(&id)
                .unwrap()
                .update(&json!({ "state": state, "failure_reason": reason }));
            jobs.retry(id);
            jobs.retry(id);
            assert_eq!(jobs.waiting.len(), count, "{state} {reason}");
            jobs.waiting.clear();
        }
    }

    #[test]
    fn waiting_job_is_not_stuck() {
        let mut jobs = Jobs::default();
        let id = jobs.add(Arc::new(Job::new("a").retry(1, &[STUCK])));
        jobs.fail_stuck(SILENCE, Instant::now() + 2 * SILENCE);
        assert_eq!(
            (jobs.all[&id].status, jobs.next_stuck(SILENCE)),
            (Status::Pending, None)
        );
    }
}
