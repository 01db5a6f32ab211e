//! What becomes of a job that has failed, or whose runner is never heard of again: its host may have died. (GitLab:
//! `Ci::StuckBuilds`, which gives a runner an hour, and `Ci::RetryJobService`.)

use std::time::{Duration, Instant};

use super::jobs::Jobs;
use super::{GitLab, Known, LIMIT, Status};

/// Why such a job has failed.
pub const STUCK: &str = "stuck_or_timeout_failure";

impl GitLab {
    /// Waits until `is_it` is true of all jobs, and says whether it is. Meanwhile jobs fail whose runners say nothing
    /// for `silence`.
    #[must_use]
    pub fn wait_for_all(&self, silence: Duration, is_it: impl Fn(&[&Known]) -> bool) -> bool {
        let deadline = Instant::now() + LIMIT;
        let mut jobs = self.shared.jobs();
        loop {
            jobs.fail_stuck(silence, Instant::now());
            let is_so = is_it(&jobs.all.values().collect::<Vec<_>>());
            if is_so || Instant::now() >= deadline {
                return is_so;
            }
            let next = jobs
                .next_stuck(silence)
                .map_or(deadline, |next| next.min(deadline));
            let waited = self
                .shared
                .changed
                .wait_timeout(jobs, next.saturating_duration_since(Instant::now()));
            jobs = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
    }

    /// What is known of all jobs now.
    #[must_use]
    pub fn all(&self) -> Vec<Known> {
        self.shared.jobs().all.values().cloned().collect()
    }
}

impl Jobs {
    fn fail_stuck(&mut self, silence: Duration, now: Instant) {
        let is_stuck = |job: &&mut Known| job.status.is_open() && job.heard + silence <= now;
        let mut failed = Vec::new();
        for job in self.all.values_mut().filter(is_stuck) {
            job.status = Status::Failed;
            STUCK.clone_into(&mut job.reason);
            failed.push(job.id);
        }
        failed.into_iter().for_each(|id| self.retry(id));
    }

    fn next_stuck(&self, silence: Duration) -> Option<Instant> {
        self.all
            .values()
            .filter(|job| job.status.is_open())
            .map(|job| job.heard + silence)
            .min()
    }

    /// Has a job that has failed come anew, once, if it says so.
    pub fn retry(&mut self, id: u64) {
        let Some(job) = self.all.get(&id) else { return };
        if job.status != Status::Failed || job.retried_as.is_some() {
            return;
        }
        if let Some(work) = job.work.retried(&job.reason) {
            let new = self.add(work);
            self.all
                .entry(id)
                .and_modify(|job| job.retried_as = Some(new));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Work;
    use super::*;

    const SILENCE: Duration = Duration::from_secs(10);

    /// A job that a runner has.
    fn taken(jobs: &mut Jobs, work: Work) -> u64 {
        let id = jobs.add(work);
        assert_eq!(jobs.next("host").unwrap()["id"], id);
        id
    }

    #[test]
    fn a_job_whose_runner_says_nothing_fails_and_comes_anew_as_often_as_it_may() {
        let mut jobs = Jobs::default();
        let first = taken(&mut jobs, Work::new("a").retry(1, &[STUCK]));
        let heard = jobs.all[&first].heard;
        assert_eq!(jobs.next_stuck(SILENCE), Some(heard + SILENCE));
        jobs.fail_stuck(SILENCE, heard + SILENCE - Duration::from_millis(1));
        assert_eq!(jobs.all[&first].status, Status::Running);
        jobs.fail_stuck(SILENCE, heard + SILENCE);
        let job = &jobs.all[&first];
        assert_eq!((job.status, &*job.reason), (Status::Failed, STUCK));
        let second = job.retried_as.unwrap();
        assert_eq!(jobs.next("other").unwrap()["id"], second);
        assert_eq!(
            (&*jobs.all[&first].runner, &*jobs.all[&second].runner),
            ("host", "other")
        );
        jobs.fail_stuck(SILENCE, jobs.all[&second].heard + SILENCE);
        assert_eq!(
            (jobs.all[&second].status, jobs.all[&second].retried_as),
            (Status::Failed, None)
        );
        assert_eq!((jobs.next_stuck(SILENCE), jobs.next("other")), (None, None));
    }

    #[test]
    fn only_after_failures_of_the_kinds_that_it_names_does_a_job_come_anew_and_once() {
        let mut jobs = Jobs::default();
        for (state, reason, count) in [
            ("failed", "script_failure", 0),
            ("failed", "runner_system_failure", 1),
            ("success", "", 0),
            ("running", "", 0),
        ] {
            let id = taken(
                &mut jobs,
                Work::new("a").retry(2, &[STUCK, "runner_system_failure"]),
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
    fn a_job_that_waits_is_not_stuck() {
        let mut jobs = Jobs::default();
        let id = jobs.add(Work::new("a").retry(1, &[STUCK]));
        jobs.fail_stuck(SILENCE, Instant::now() + 2 * SILENCE);
        assert_eq!(
            (jobs.all[&id].status, jobs.next_stuck(SILENCE)),
            (Status::Pending, None)
        );
    }
}
