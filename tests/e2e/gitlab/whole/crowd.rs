//! Many jobs at a time.

use nspawn_tests::api::{GitLab, Status, Work};
use nspawn_tests::image;

use super::ended;
use super::runner::Runner;

const COUNT: usize = 20;

#[test]
fn twenty_jobs_at_once_have_each_their_own_result() {
    let gitlab = GitLab::new();
    let project = gitlab.repository("group/project", &[("file", "source\n")]);
    let work = |number: usize| {
        let exit = format!("exit {}", number % 3);
        let script = ["cat file; hostname", "echo $NUMBER > number; cat number", &exit];
        let work = Work::new(&image()).sources(&project).variable("NUMBER", &format!("this is {number}"));
        work.script(&script).artifacts(&["number"], "always")
    };
    let jobs: Vec<_> = (0..COUNT).map(|number| gitlab.add(work(number))).collect();
    let runners: Vec<_> = jobs.iter().map(|_| Runner::start(&gitlab, &["--max-builds=1"])).collect();
    runners.into_iter().for_each(Runner::finish);
    for (number, id) in jobs.into_iter().enumerate() {
        let job = ended(&gitlab, id);
        let code = i64::try_from(number % 3).unwrap();
        let status = if code == 0 { Status::Success } else { Status::Failed };
        assert_eq!((job.status, job.exit_code), (status, code), "{}", job.describe());
        assert!(job.log().contains(&format!("\nthis is {number}\n")), "{}", job.describe());
        assert!(job.artifacts.is_some() && job.log().contains(&format!("\ngitlab-{id}-")), "{}", job.describe());
    }
}
