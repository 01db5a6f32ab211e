//! Caches, which keep files for later jobs of a project.

mod removal;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use nspawn_tests::gitlab_runner::{Attempt, Job, Outcome, Report, Runner};
use nspawn_tests::{call, image, left_of, scratch, sh};
use serde_json::json;

/// A project with a unique number, whose caches are deleted at the end of the test.
struct Project(u64);

impl Project {
    /// Returns a project of which no other test has a cache.
    fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        Self(u64::from(std::process::id()) * 100 + number)
    }

    fn job(&self) -> Job {
        Job::new(&image()).project(self.0)
    }

    fn run(&self, lines: &[&str]) -> Report {
        self.job().script(lines).run().expect(&Outcome::Success)
    }

    fn files(&self) -> Vec<String> {
        let list = sh(&format!("ls /var/cache/nspawn-ci/*-{}-*.ext4", self.0)).out();
        list.lines().map(str::to_owned).collect()
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        self.files()
            .iter()
            .for_each(|file| drop(fs::remove_file(file)));
    }
}

#[test]
fn cache_is_kept_for_the_next_job() {
    let project = Project::new();
    let seen = "stat --format '%u %a %n' /cache /cache/key /cache/key/cache.zip";
    let first = project.run(&["mkdir /cache/key", "echo kept > /cache/key/cache.zip", seen]);
    let next = project.run(&["cat /cache/key/cache.zip", seen]);
    // Each machine has another UID range, and still sees the same owners.
    assert_eq!(
        first.stage("build_script").text(),
        "0 1777 /cache\n0 755 /cache/key\n0 644 /cache/key/cache.zip\n"
    );
    assert_eq!(
        next.stage("build_script").text(),
        format!("kept\n{}", first.stage("build_script").text())
    );
    assert_eq!(left_of(&first.machine) + &left_of(&next.machine), "");
    let devices = sh("losetup --list --output=BACK-FILE").expect(0).out();
    let files = project.files();
    assert!(!files.is_empty() && !files.iter().any(|file| devices.contains(file)));
}

#[test]
fn cache_works_with_every_init_and_layer() {
    let project = Project::new();
    for (number, options) in [
        &["--init=stub"][..],
        &["--init=none"],
        &["--layer=none"],
        &["--layer=tmpfs", "--network=none"],
    ]
    .iter()
    .enumerate()
    {
        let lines = [
            format!("test $(ls /cache | grep -c file) = {number}"),
            format!("touch /cache/file{number}"),
        ];
        let job = project
            .job()
            .script(&[&*lines[0], &*lines[1]])
            .after_script(&[&format!("test -e /cache/file{number}")]);
        let report = Runner::default()
            .prepare_args(options)
            .run(&job)
            .expect(&Outcome::Success);
        assert!(
            report.stage("after_script").result.is_ok(),
            "{options:?}: {}",
            report.describe()
        );
    }
}

#[test]
fn jobs_share_a_cache_whoever_their_users_are() {
    let project = Project::new();
    // The scripts of GitLab Runner replace the file of a cache in this way.
    let lines = [
        "mkdir -p /cache/key",
        "test ! -e /cache/key/cache.zip || cat /cache/key/cache.zip",
        "umask 077; echo by $(id -u):$(id -g) >/cache/key/new; mv -f /cache/key/new /cache/key/cache.zip",
        "test -O /cache/key/cache.zip -a -G /cache/key/cache.zip",
    ];
    let mut before = String::new();
    for user in ["root", "4242", "daemon:games", "root", "1000000"] {
        let user_option = json!({ "executor_opts": { "docker": { "user": user } } });
        let job = project.job().image_options(user_option).script(&lines);
        let report = job.run().expect(&Outcome::Success);
        assert_eq!(report.stage("build_script").text(), before, "{user}");
        let ids = match user {
            "root" => "0:0",
            "daemon:games" => "1:60",
            "4242" => "4242:4242",
            _ => "1000000:1000000",
        };
        before = format!("by {ids}\n");
    }
}

/// A file of the user in one job belongs to root in the next.
#[test]
fn user_leaves_no_program_with_the_rights_of_root() {
    let project = Project::new();
    let user = json!({ "executor_opts": { "docker": { "user": "4242" } } });
    let lines = ["cp /usr/bin/id /cache/id", "chmod 4755 /cache/id"];
    let job = project.job().image_options(user).script(&lines);
    let _ = job.run().expect(&Outcome::Success);
    let report = project.run(&[
        "stat --format '%u %a' /cache/id",
        "setpriv --reuid=4243 --clear-groups /cache/id --user",
    ]);
    assert_eq!(report.stage("build_script").text(), "0 4755\n4243\n");
}

#[test]
fn standby_machine_gets_the_cache_of_its_job() {
    let (project, image) = (Project::new(), format!("cached-{}", std::process::id()));
    sh(&format!(
        "ln -s {} /var/lib/machines/{image}",
        nspawn_tests::image()
    ))
    .expect(0);
    let pool = |count: &str| {
        call(
            "nspawn-prepare",
            [count, "--gitlab-runner=no", "--init=stub", &image],
        )
        .expect(0)
    };
    pool("--standby=1");
    let job = Job::new(&image)
        .project(project.0)
        .script(&["touch /cache/here; hostname"]);
    let report = Runner::default()
        .prepare_args(&["--init=stub", "--gitlab-runner=no"])
        .run(&job);
    pool("--standby=0");
    sh(&format!("rm /var/lib/machines/{image}")).expect(0);
    let _ = report.expect(&Outcome::Success);
    let _ = project.run(&["test -e /cache/here"]);
}

#[test]
fn concurrent_jobs_share_a_cache() {
    let (project, runner) = (Project::new(), Runner::default());
    let jobs: Vec<_> = (0..3).map(|_| project.job().script(&["true"])).collect();
    let attempts: Vec<_> = jobs
        .iter()
        .map(|job| Attempt::prepared(&runner, job))
        .collect();
    let run = |attempt: &Attempt, line: &str| {
        call("nspawn-run", [attempt.machine(), "sh", "-c", line])
            .expect(0)
            .out()
    };
    for (number, attempt) in attempts.iter().enumerate() {
        run(
            attempt,
            &format!("head -c 5M /dev/urandom > /cache/{number}; sync /cache/{number}"),
        );
    }
    let sums: Vec<_> = attempts
        .iter()
        .map(|attempt| run(attempt, "cd /cache; ls; cat 0 1 2 | md5sum"))
        .collect();
    assert!(
        sums[0].starts_with("0\n1\n2\n") && sums.iter().all(|sum| *sum == sums[0]),
        "{sums:?}"
    );
    attempts
        .iter()
        .for_each(|attempt| drop(attempt.cleanup().expect()));
    assert_eq!(project.files().len(), 1);
    let checked = sh(&format!("e2fsck -fn {}", project.files()[0]));
    assert_eq!(checked.code(), 0, "{}", checked.describe());
    assert_eq!(
        project
            .run(&["cat /cache/0 /cache/1 /cache/2 | md5sum"])
            .stage("build_script")
            .text(),
        sums[0][6..]
    );
}

#[test]
fn cache_is_separate_by_project_server_and_protection() {
    let project = Project::new();
    let _ = project.run(&["echo mine > /cache/secret"]);
    let empty = &["test -z \"$(ls -A /cache)\"", "echo theirs > /cache/secret"];
    let forged = |job: Job| {
        let id = project.0.to_string();
        job.variable("CI_PROJECT_ID", &id)
            .variable("CACHE_DIR", "/cache")
            .variable("CI_CACHE_DIR", "../..")
    };
    let other = Project::new();
    let _ = forged(other.job())
        .script(empty)
        .run()
        .expect(&Outcome::Success);
    let _ = project
        .job()
        .server("https://other.example")
        .script(empty)
        .run()
        .expect(&Outcome::Success);
    let _ = project
        .job()
        .protected()
        .script(empty)
        .run()
        .expect(&Outcome::Success);
    let kept = project.run(&["cat /cache/secret"]);
    assert_eq!(kept.stage("build_script").text(), "mine\n");
    assert_eq!(project.files().len(), 3);
    // Only root can read the caches on the host.
    let mode = sh("stat --format '%u %a' /var/cache/nspawn-ci").out();
    assert_eq!(mode, "0 700\n");
}

/// GitLab before 18.3 sends a variable instead of the property, and jobs can set it again.
#[test]
fn cache_is_separate_by_protection_in_a_variable() {
    let project = Project::new();
    let override_variable = |job: Job, value| job.variable("CI_COMMIT_REF_PROTECTED", value);
    let run = |job: Job, lines: &[&str]| job.script(lines).run().expect(&Outcome::Success);
    let open = || override_variable(project.job().protection_in_variable(), "true");
    let protected = || project.job().protected().protection_in_variable();
    let _ = run(open(), &["echo evil >/cache/program"]);
    let empty = "test -z \"$(ls -A /cache)\"";
    let _ = run(protected(), &[empty, "echo good >/cache/program"]);
    let _ = run(open(), &["grep evil /cache/program"]);
    // A server that is upgraded to 18.3 keeps the caches.
    let _ = run(project.job().protected(), &["grep good /cache/program"]);
    let _ = run(project.job(), &["grep evil /cache/program"]);
    assert_eq!(project.files().len(), 2);
}

#[test]
fn job_with_unknown_protection_has_no_cache() {
    let project = Project::new();
    let note = "cache: has no effect, because the job response does not tell whether the branch is protected";
    let job = || {
        project
            .job()
            .unknown_protection()
            .script(&["mkdir -p /cache/key"])
    };
    let report = job().run().expect(&Outcome::Success);
    assert!(!report.log().contains(note), "{}", report.describe());
    let cached = || job().cache("key", &["file"], "pull");
    cached().run().expect(&Outcome::Success).expect_log(note);
    let report = Runner::default()
        .prepare_args(&["--cache-size=no"])
        .run(&cached());
    assert!(!report.log().contains(note), "{}", report.describe());
    assert_eq!(project.files().len(), 0);
}

#[test]
fn job_without_a_trusted_project_has_no_cache() {
    let job = || Job::new(&image()).variable("CI_PROJECT_ID", "1");
    let _ = Runner::old()
        .run(&job().script(&["mkdir -p /cache; touch /cache/lost"]))
        .expect(&Outcome::Success);
    let _ = Runner::old()
        .run(&job().script(&["test ! -e /cache/lost"]))
        .expect(&Outcome::Success);
}

#[test]
fn cache_size_no_disables_caches() {
    let project = Project::new();
    let runner = Runner::default().prepare_args(&["--cache-size=no"]);
    let _ = runner
        .run(&project.job().script(&["mkdir -p /cache; touch /cache/x"]))
        .expect(&Outcome::Success);
    assert!(project.files().is_empty());
}

#[test]
fn cache_is_writable_for_the_user_of_the_image() {
    let project = Project::new();
    let user = serde_json::json!({ "executor_opts": { "docker": { "user": "nobody" } } });
    let job = || project.job().image_options(user.clone());
    let lines = [
        "id -un",
        "touch /cache/theirs",
        "ls -l /cache/theirs | cut -d' ' -f3",
        "pwd",
    ];
    let report = job().script(&lines).run().expect(&Outcome::Success);
    assert_eq!(
        report.stage("build_script").text(),
        "nobody\nnobody\n/builds/group/project\n",
        "{}",
        report.describe()
    );
    let _ = job()
        .script(&["rm /cache/theirs"])
        .run()
        .expect(&Outcome::Success);
}

/// Runs before the programs of the host: `mount` fails the first time that it mounts a cache, and
/// `e2fsck` records its exit status.
struct Shims(PathBuf);

impl Shims {
    fn new(name: &str) -> Self {
        let shims = Self(scratch(name));
        let place = shims.0.display();
        shims.write(
            "mount",
            &format!(
                "case $* in *.ext4*) mkdir {place}/failed 2>/dev/null && exit 32;; esac; exec /bin/mount \"$@\""
            ),
        );
        shims.write(
            "e2fsck",
            &format!("/sbin/e2fsck \"$@\"; status=$?; echo $status >>{place}/checks; exit $status"),
        );
        shims
    }

    fn write(&self, name: &str, line: &str) {
        let path = self.0.join(name);
        fs::write(&path, format!("#!/bin/sh\n{line}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn runner(&self) -> Runner {
        let path = format!("{}:{}", self.0.display(), std::env::var("PATH").unwrap());
        Runner::default().variable("PATH", &path)
    }

    /// Returns whether the first mount has failed, and the exit statuses of e2fsck.
    fn seen(&self) -> (bool, String) {
        let checks = fs::read_to_string(self.0.join("checks")).unwrap_or_default();
        (self.0.join("failed").exists(), checks)
    }
}

impl Drop for Shims {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn cache_that_another_job_has_mounted_is_not_checked() {
    let project = Project::new();
    let runner = Runner::default();
    let job = project.job().script(&["true"]);
    let first = Attempt::prepared(&runner, &job);
    let write = "echo kept >/cache/kept; sync /cache/kept";
    call("nspawn-run", [first.machine(), "sh", "-c", write]).expect(0);
    let shims = Shims::new("cache-in-use");
    let next = project.job().script(&["cat /cache/kept"]);
    let report = shims.runner().run(&next).expect(&Outcome::Success);
    assert_eq!(report.stage("build_script").text(), "kept\n");
    assert_eq!(shims.seen(), (true, String::new()));
    drop(first.cleanup().expect());
    // Without another job, the cache is checked after a failed mount.
    let shims = Shims::new("cache-not-in-use");
    let _ = shims.runner().run(&next).expect(&Outcome::Success);
    assert_eq!(shims.seen(), (true, "0\n".to_owned()));
}
