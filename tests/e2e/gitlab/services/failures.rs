//! Services that fail, and whether that is a script failure or a system failure.

use nspawn_tests::gitlab_runner::{Job, Outcome, Runner};
use nspawn_tests::{call, image, left_of, sh};
use serde_json::json;

use super::{read_from, server};

#[test]
fn job_goes_on_after_the_machine_of_a_service_ends() {
    for init in ["--init=stub", "--init=none"] {
        let dying = json!({ "name": image(), "alias": "x", "command": ["sh", "-c", "echo bye; kill -9 -1"] });
        let job = Job::new(&image())
            .service_of(dying)
            .service_of(server("other", &["83"]));
        let job = job.script(&[&read_from("other", 83)]).at_log("to 198.18.0.1", |moment| {
            let service = format!("{}-2", moment.machine());
            call("machinectl", ["kill", "--signal=KILL", &service]).expect(0);
            sh(&format!("timeout 20 sh -c 'while ls -d /sys/fs/cgroup/machine.slice/machine-ci.slice/*/nspawn-{service}.service; \
                do sleep 0.05; done'")).expect(0);
        });
        let job = job
            .stage("step_two", &["echo went on"])
            .after_script(&["echo after"]);
        let report = Runner::default()
            .prepare_args(&[init])
            .run(&job)
            .expect(&Outcome::Success);
        // Warnings of nspawn-run come on another pipe, so their place among the lines is not certain.
        for (stage, line) in [("step_two", "went on"), ("after_script", "after")] {
            let text = report.stage(stage).text();
            assert!(
                text.lines().any(|found| found == line),
                "{}",
                report.describe()
            );
        }
        assert_eq!(left_of(&report.machine), "");
    }
}

#[test]
fn services_are_refused_with_the_network_of_the_host() {
    let name = format!("hostnet-{}", std::process::id());
    let argument_file = format!("/etc/nspawn-ci/images/{name}.args");
    sh(&format!(
        "mkdir -p /etc/nspawn-ci/images; ln -s {} /var/lib/machines/{name}",
        image()
    ))
    .expect(0);
    std::fs::write(&argument_file, "--init=stub --network=host").unwrap();
    let links = || sh("ip -o link | grep -cwE 'job|services'").out();
    let job = || Job::new(&image()).script(&["echo too far"]);
    let command = json!({ "name": name, "alias": "x", "command": ["sleep", "60"] });
    let service_on_host = Runner::default().run(&job().service_of(command));
    let job = job()
        .variable("NSPAWN_JOB_NETWORK", "none")
        .service_of(server("x", &["80"]));
    let job_on_host = Runner::default()
        .prepare_args(&["--network=host"])
        .run(&job);
    sh(&format!("rm {argument_file} /var/lib/machines/{name}")).expect(0);
    for report in [service_on_host, job_on_host] {
        assert!(
            matches!(report.outcome, Outcome::SystemFailure(_)),
            "{}",
            report.describe()
        );
        report.expect_log("services need a network of the machine's own");
    }
    assert_eq!(links(), "0\n");
}

#[test]
fn failed_service_leaves_nothing_despite_keep() {
    let job = Job::new(&image())
        .service_of(server("x", &["80"]))
        .service_of(json!({ "name": image(), "alias": "y" }));
    let runner = Runner::default().prepare_args(&["--keep=failure", "--init=stub"]);
    let report = runner
        .run(&job.script(&["true"]))
        .expect(&Outcome::ScriptFailure(1));
    report.expect_log("it has no command");
    assert_eq!(left_of(&report.machine), "");
}

#[test]
fn invalid_services_are_refused() {
    let many = (0..17).fold(Job::new(&image()), |job, _| job.service(&image(), "x"));
    let report = many.run().expect(&Outcome::ScriptFailure(1));
    report.expect_log("17 services, and this runner allows 16");
    let report = Job::new(&image())
        .service_of(json!({ "alias": "x" }))
        .run()
        .expect(&Outcome::ScriptFailure(1));
    report.expect_log("names no image");
}

#[test]
fn service_that_does_not_listen_is_reported_with_its_log() {
    let service =
        |command: &str| json!({ "name": image(), "alias": "x", "command": ["sh", "-c", command] });
    let run = |command: &str| {
        let job = Job::new(&image())
            .service_of(service(command))
            .script(&["echo went on"]);
        let report = Runner::default()
            .prepare_args(&["--init=stub", "--service-timeout=2s"])
            .run(&job);
        let report = report.expect(&Outcome::Success);
        report.expect_log("went on");
        report.log()
    };
    let log = run("echo my last words; exit 3");
    assert!(
        log.contains("has ended; its log is below") && log.contains("my last words"),
        "{log}"
    );
    let log = run("echo still here; sleep 60");
    assert!(
        log.contains("does not listen on any port after 2 s") && log.contains("still here"),
        "{log}"
    );
}

#[test]
fn service_that_ends_before_its_job_is_reported_with_its_log() {
    let mut service = server("x", &["82"]);
    service["command"] = json!([
        "perl",
        "-e",
        "use IO::Socket::INET; $s = IO::Socket::INET->new(LocalPort => 82, \
        Listen => 1); $s->accept; die 'who knocks?'"
    ]);
    let job = Job::new(&image())
        .service_of(service)
        .service_of(server("other", &["83"]));
    // The connection is closed a moment before the service has ended.
    let job = job.script(&["exec 3<>/dev/tcp/x/82; cat <&3", "sleep 1", "exit 4"]);
    let report = job.run().expect(&Outcome::ScriptFailure(4));
    let last = report.stage("cleanup_file_variables").text();
    assert!(
        last.contains("ended before the job") && last.contains("who knocks?"),
        "{last}"
    );
    assert_eq!(last.matches("ended before").count(), 1, "{last}");
}

#[test]
fn debugged_job_has_the_logs_of_all_services() {
    let command = ["sh", "-c", "echo still here; sleep 60"];
    let service = json!({ "name": image(), "alias": "x", "command": command });
    let job = Job::new(&image())
        .service_of(service)
        .variable("CI_DEBUG_SERVICES", "true");
    let report = Runner::default()
        .prepare_args(&["--init=stub", "--service-timeout=1s"])
        .run(&job)
        .expect(&Outcome::Success);
    let last = report.stage("cleanup_file_variables").text();
    assert!(
        last.contains("still here") && !last.contains("ended"),
        "{last}"
    );
}

#[test]
fn failed_service_is_blamed_on_the_job_or_the_host() {
    let fails = |job: Job, arguments: &[&str], words: &str| {
        let report = Runner::default()
            .prepare_args(arguments)
            .run(&job.script(&["echo too far"]));
        report.expect_log(words);
        assert!(!report.log().contains("too far"));
        assert_eq!(left_of(&report.machine), "");
        report.outcome
    };
    let job = || Job::new(&image());
    let unknown = job().service("no-such-image:1", "x");
    assert_eq!(
        fails(unknown, &[], "can't use the service no-such-image:1: "),
        Outcome::ScriptFailure(1)
    );
    let refused = job().service(&image(), "x");
    let outcome = fails(
        refused,
        &["--allow-service=other", "--allow-service=x*"],
        "is not allowed on this runner",
    );
    assert_eq!(outcome, Outcome::ScriptFailure(1));
    let idle = job().service(&image(), "x");
    assert_eq!(
        fails(idle, &["--init=stub"], "it has no command"),
        Outcome::ScriptFailure(1)
    );
    let outcome = fails(
        job().service(&image(), "x"),
        &["--network=host"],
        "services need a network",
    );
    assert!(matches!(outcome, Outcome::SystemFailure(_)));
}

/// With `--init=none` each stage starts the machine again, with the files that the last stage left.
#[test]
fn damaged_files_of_a_job_affect_nothing_else() {
    let host = || sh("cat /etc/hosts /etc/passwd; ls -d /cache 2>&1").out();
    let before = host();
    for damage in [
        "rm /etc/hosts; mkfifo /etc/hosts; echo 'hosts: dns' >/etc/nsswitch.conf",
        "rm /etc/hosts; ln -s /dev/tty /etc/hosts",
        "rm -r /etc/hosts; ln -s ../../../../../../../etc/passwd /etc/hosts; cp /etc/passwd /root",
        "umount /cache; rmdir /cache; ln -s /var/tmp /cache",
    ] {
        let job = Job::new(&image())
            .service_of(server("x", &["80"]))
            .stage("get_sources", &[damage]);
        let runner = Runner::default().prepare_args(&["--init=none"]);
        // The job has damaged its own name resolution, so it connects by address. The next start of
        // its machine has mended the file of the names.
        let report = runner.run(&job.script(&[
            "mkdir -p /builds/group/project",
            "test ! -L /etc/hosts && grep 198.18.0.2 /etc/hosts && getent -s files hosts localhost",
            &read_from("198.18.0.2", 80),
        ]));
        let report = report.expect(&Outcome::Success);
        assert!(
            report.log().contains("to 198.18.0.1"),
            "{}",
            report.describe()
        );
        assert_eq!(left_of(&report.machine), "");
    }
    assert_eq!(host(), before);
}
