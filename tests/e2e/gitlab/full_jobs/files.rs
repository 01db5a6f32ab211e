//! Sources, artifacts, caches and variables of jobs.

use nspawn_tests::gitlab_server::{GitLab, Status};
use nspawn_tests::{Job, image, sh};

use super::{run, run_all};

#[test]
fn sources_include_submodules() {
    let gitlab = GitLab::new();
    let inner = gitlab.repository("group/inner", &[("file", "inner\n")]);
    let mut library = gitlab.repository("group/library", &[("file", "older library\n")]);
    library.commit(&[("file", "library\n")], Some(("inner", &inner)));
    let mut project = gitlab.repository("group/project", &[("file", "older project\n")]);
    project.commit(&[("file", "project\n")], Some(("library", &library)));
    let show =
        "cat file library/file library/inner/file; git rev-list --count HEAD; git status --short";
    let work = |strategy: &str, depth: u64| {
        let work = Job::new(&image())
            .sources(&project)
            .variable("GIT_SUBMODULE_STRATEGY", "recursive");
        work.variable("GIT_STRATEGY", strategy)
            .depth(depth)
            .script(&[show])
    };
    let jobs = run_all(&gitlab, vec![work("fetch", 0), work("clone", 1)], &[]);
    for (job, commits) in jobs.iter().zip([2, 1]) {
        assert_eq!(job.status, Status::Success, "{}", job.describe());
        job.expect_log(&format!("\nproject\nlibrary\ninner\n{commits}\n"));
    }
}

#[test]
#[ignore = "needs the real GitLab Runner, which GITLAB_RUNNER names"]
fn clone_path_is_inside_of_the_builds_directory() {
    let gitlab = GitLab::new();
    let project = gitlab.repository("group/project", &[("file", "source\n")]);
    let work = |path: &str| {
        let work = Job::new(&image()).sources(&project);
        work.variable("GIT_CLONE_PATH", path)
            .script(&["pwd; cat file"])
    };
    let work = vec![work("$CI_BUILDS_DIR/go/src/own"), work("/elsewhere")];
    let jobs = run_all(&gitlab, work, &["--custom_build_dir-enabled=true"]);
    assert_eq!(jobs[0].status, Status::Success, "{}", jobs[0].describe());
    jobs[0].expect_log("\n/builds/go/src/own\nsource\n");
    assert_eq!(jobs[1].status, Status::Failed, "{}", jobs[1].describe());
    jobs[1].expect_log("has to be within \"/builds\"");
}

#[test]
fn failed_fetch_of_sources_is_retried() {
    let gitlab = GitLab::new();
    let project = gitlab.repository("group/project", &[("file", "here at last\n")]);
    let work = || Job::new(&image()).sources(&project).script(&["cat file"]);
    gitlab.fail_git(1);
    let job = run_all(
        &gitlab,
        vec![work().variable("GET_SOURCES_ATTEMPTS", "2")],
        &[],
    )
    .remove(0);
    assert_eq!(job.status, Status::Success, "{}", job.describe());
    assert!(
        job.log().contains("error: 502") && job.log().contains("here at last"),
        "{}",
        job.describe()
    );
    gitlab.fail_git(1);
    let job = run_all(&gitlab, vec![work()], &[]).remove(0);
    assert_eq!(
        (job.status, &*job.reason),
        (Status::Failed, "script_failure"),
        "{}",
        job.describe()
    );
    assert!(!job.log().contains("here at last"), "{}", job.describe());
}

#[test]
fn artifacts_are_passed_to_the_next_job() {
    let gitlab = GitLab::new();
    let make = [
        "mkdir -p out/deep",
        "head -c 3M /dev/urandom | tee out/deep/data | sha256sum | cut -c1-64 > out/sum",
    ];
    let more = [
        "echo 'echo it r''uns' > out/tool; chmod 755 out/tool; ln -s tool out/link",
        "echo no > other",
    ];
    let first = Job::new(&image())
        .script(&[make, more].concat())
        .artifacts(&["out/"], "on_success");
    let first = gitlab.add(first.artifacts(&["other"], "on_failure"));
    let use_it = [
        "test $(sha256sum < out/deep/data | cut -c1-64) = $(cat out/sum)",
        "out/link",
        "ls",
    ];
    let second = gitlab.add(Job::new(&image()).needs(first).script(&use_it));
    super::Runner::start(&gitlab, &["--max-builds=2"]).finish();
    let [first, second] = [first, second].map(|id| super::result_of(&gitlab, id));
    assert_eq!(first.status, Status::Success, "{}", first.describe());
    let upload = first
        .artifacts
        .as_ref()
        .unwrap_or_else(|| panic!("no artifacts: {}", first.describe()));
    assert_eq!(
        (&*upload.name, &upload.content[..2]),
        ("product.zip", &b"PK"[..])
    );
    assert_eq!(second.status, Status::Success, "{}", second.describe());
    let log = second.log();
    let (_, shown) = log
        .split_once("it runs\n")
        .unwrap_or_else(|| panic!("{}", second.describe()));
    assert!(
        shown.contains("\nout\n") && !shown.contains("other"),
        "{}",
        second.describe()
    );
}

#[test]
fn failed_job_uploads_artifacts() {
    let work = Job::new(&image()).script(&["echo why > why", "exit 3"]);
    let job = run(work.artifacts(&["why"], "on_failure"));
    assert_eq!(
        (job.status, job.exit_code),
        (Status::Failed, 3),
        "{}",
        job.describe()
    );
    assert!(job.artifacts.is_some(), "{}", job.describe());
}

#[test]
fn caches_are_shared_within_one_project() {
    let number = u64::from(std::process::id()) * 100;
    let work = |project: u64, policy: &str| {
        let work = Job::new(&image()).project(number + project).cache(
            "key-$CI_JOB_NAME",
            &["kept"],
            policy,
        );
        work.script(&[
            "echo \"found: $(cat kept/file 2>/dev/null)\"; mkdir -p kept",
            "echo by $CI_JOB_ID >> kept/file",
        ])
    };
    let work = vec![
        work(1, "pull-push"),
        work(1, "pull"),
        work(1, "push"),
        work(2, "pull-push"),
        work(1, "pull"),
    ];
    let jobs = run_all(&GitLab::new(), work, &[]);
    let files = [1, 2].map(|project| format!("/var/cache/nspawn-ci/*-{}-*.ext4", number + project));
    sh(&format!("rm {}", files.join(" "))).expect(0);
    let by = |job: usize| format!("by {}", jobs[job].id);
    for (job, found) in jobs
        .iter()
        .zip([String::new(), by(0), String::new(), String::new(), by(2)])
    {
        assert_eq!(job.status, Status::Success, "{}", job.describe());
        job.expect_log(&format!("\nfound: {found}\n"));
    }
}

#[test]
fn caches_of_an_older_server_are_separate_by_protection() {
    let project = u64::from(std::process::id()) * 100 + 3;
    let work = |job: Job| {
        let work = job
            .project(project)
            .cache("key", &["kept"], "pull-push")
            .protection_in_variable()
            .variable("CI_COMMIT_REF_PROTECTED", "true");
        work.script(&[
            "echo \"found: $(cat kept/file 2>/dev/null)\"; mkdir -p kept",
            "echo by $CI_JOB_ID >> kept/file",
        ])
    };
    let (open, protected) = (
        || work(Job::new(&image())),
        || work(Job::new(&image()).protected()),
    );
    let jobs = run_all(&GitLab::new(), vec![open(), protected(), open()], &[]);
    let removed = sh(&format!("rm -v /var/cache/nspawn-ci/*-{project}-*.ext4"));
    assert_eq!(removed.out().lines().count(), 2, "{}", removed.describe());
    let first = format!("by {}", jobs[0].id);
    for (job, found) in jobs.iter().zip(["", "", &first]) {
        assert_eq!(job.status, Status::Success, "{}", job.describe());
        job.expect_log(&format!("\nfound: {found}\n"));
    }
}

#[test]
fn file_variables_and_large_variables_arrive() {
    // The runner passes the variable in the driver's environment, whose strings are limited to 128
    // KiB.
    let large = "0123456789abcdef".repeat(6400);
    let work = Job::new(&image())
        .variable("LARGE", &large)
        .file_variable("SETTINGS", "a 'b'\n\"$c\" \\d\n");
    let job = run(work.script(&[
        "echo ${#LARGE} bytes; printenv LARGE | tr -d '0-9a-f' | wc -c",
        "echo $SETTINGS; cat \"$SETTINGS\"",
        "case $SETTINGS in \"$CI_PROJECT_DIR.tmp/SETTINGS\") echo in its pl''ace ;; esac",
    ]));
    assert_eq!(job.status, Status::Success, "{}", job.describe());
    for shown in [
        "\n102400 bytes\n1\n",
        "\na 'b'\n\"$c\" \\d\n",
        "\nin its place\n",
    ] {
        job.expect_log(shown);
    }
}
