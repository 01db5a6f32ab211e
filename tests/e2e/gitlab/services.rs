//! The `services:` of jobs.

mod failures;
mod slice;

use nspawn_common::shell;
use nspawn_tests::gitlab_runner::{Attempt, Job, Outcome, Runner};
use nspawn_tests::{call, image, left_of, scratch, sh};
use serde_json::{Value, json};

/// Perl program of a server that answers with its variable, its arguments and the client's address.
const SERVER: &str = r#"use IO::Socket::INET; $s = IO::Socket::INET->new(LocalPort => shift, Listen => 9, ReuseAddr => 1) or die;
    while ($c = $s->accept) { print $c "$ENV{WHO} @ARGV to ", $c->peerhost, "\n"; close $c }"#;

fn server(alias: &str, words: &[&str]) -> Value {
    let command: Vec<_> = ["perl", "-e", SERVER].iter().chain(words).collect();
    json!({
        "name": image(), "alias": alias, "entrypoint": null, "command": command,
        "variables": [{ "key": "WHO", "value": format!("{alias}-$NUMBER"), "public": true }],
    })
}

/// Returns a shell command that prints the answer of a server.
fn read_from(host: &str, port: u16) -> String {
    format!("exec 3<>/dev/tcp/{host}/{port}; cat <&3")
}

#[test]
fn services_are_reached_by_name_with_every_init() {
    for options in [
        &["--init=systemd"][..],
        &["--init=stub", "--layer=none"],
        &["--init=none"],
    ] {
        let job = Job::new(&image())
            .variable("NUMBER", "7")
            .service_of(server("db,pg", &["5432", "a b", "$HOME", ""]));
        let job = job.service_of(server("cache", &["6379"]));
        let job = job.script(&[
            &read_from("db", 5432),
            &read_from("pg", 5432),
            &read_from("cache", 6379),
            &read_from(&image(), 5432),
        ]);
        let job = job.after_script(&[&read_from("cache", 6379), "getent hosts pg"]);
        let report = Runner::default()
            .prepare_args(options)
            .run(&job)
            .expect(&Outcome::Success);
        let (db, cache) = (
            "db,pg-7 a b $HOME  to 198.18.0.1\n",
            "cache-7  to 198.18.0.1\n",
        );
        assert_eq!(
            report.stage("build_script").text(),
            [db, db, cache, db].concat(),
            "{}",
            report.describe()
        );
        assert!(
            report.stage("after_script").text().starts_with(cache),
            "{}",
            report.describe()
        );
        assert_eq!(left_of(&report.machine), "");
    }
}

#[test]
fn services_reach_each_other_but_no_other_job() {
    let job = || {
        Job::new(&image())
            .service_of(server("one", &["80"]))
            .service_of(server("two", &["80"]))
    };
    let (runner, one, other) = (
        Runner::default(),
        job().script(&["true"]),
        job().script(&["true"]),
    );
    let (one, other) = (
        Attempt::prepared(&runner, &one),
        Attempt::prepared(&runner, &other),
    );
    let run = |machine: &str, line: &str| call("nspawn-run", [machine, "bash", "-c", line]);
    let second = format!("{}-2", one.machine());
    run(
        &second,
        &format!("{}; ip route | grep -c default", read_from("one", 80)),
    )
    .expect(0);
    // The links of all jobs have the same addresses, but are separate.
    call("nspawn-cleanup", [&format!("{}-2", other.machine())]).expect(0);
    run(one.machine(), &read_from("two", 80)).expect(0);
    let unreachable = run(
        other.machine(),
        &format!("timeout 2 bash -c '{}'", read_from("two", 80)),
    );
    assert_ne!(unreachable.code(), 0, "{}", unreachable.describe());
    // The host has no address on the link.
    let host =
        sh("timeout 1 bash -c 'exec 3<>/dev/tcp/198.18.0.3/80'; ip -o address | grep -F 198.18.0.");
    assert_ne!(host.code(), 0, "{}", host.describe());
    one.cleanup().expect();
    other.cleanup().expect();
    assert_eq!(left_of(one.machine()) + &left_of(other.machine()), "");
}

/// A server that needs a database connects to it while it starts.
#[test]
fn services_resolve_each_other_while_they_start() {
    let mut dependent = server("dependent", &["80"]);
    let query = "until cat </dev/tcp/db/5432; do sleep 0.1; done >/run/answer";
    dependent["command"] = json!([
        "bash",
        "-c",
        format!("{query}; exec perl -e '{SERVER}' 80 served")
    ]);
    for init in ["--init=systemd", "--init=stub"] {
        let job = Job::new(&image())
            .service_of(dependent.clone())
            .service_of(server("db", &["5432"]));
        let report = Runner::default()
            .prepare_args(&[init])
            .run(&job.script(&[&read_from("dependent", 80)]));
        let report = report.expect(&Outcome::Success);
        assert!(
            report
                .stage("build_script")
                .text()
                .contains("served to 198.18.0.1"),
            "{}",
            report.describe()
        );
    }
}

/// The systemd of the booted image starts the units.
#[test]
fn units_of_a_booted_service_have_its_variables() {
    let service = json!({
        "name": image(), "alias": "booted", "command": ["sh", "-c", "systemctl show --property=Environment cron || true; \
            systemd-run --quiet --wait --pipe sh -c 'echo \"hello $WHO\" >/run/greeting'; \
            perl -e 'use IO::Socket::INET; $s = IO::Socket::INET->new(LocalPort => 99, Listen => 1); sleep 60'"],
        "variables": [{ "key": "WHO", "value": "x \"y\" %n", "public": true }],
    });
    let (runner, job) = (
        Runner::default(),
        Job::new(&image()).service_of(service).script(&["true"]),
    );
    let attempt = Attempt::prepared(&runner, &job);
    let answer = call(
        "nspawn-run",
        [&*format!("{}-1", attempt.machine()), "cat", "/run/greeting"],
    )
    .expect(0);
    assert_eq!(answer.out(), "hello x \"y\" %n\n");
    attempt.cleanup().expect();
}

#[test]
fn argument_file_sets_command_and_port_of_a_service() {
    let argument_file = format!(
        "/etc/nspawn-ci/images/{}-{}.args",
        image(),
        std::process::id()
    );
    let name = format!("{}-{}", image(), std::process::id());
    sh(&format!(
        "mkdir -p /etc/nspawn-ci/images; ln -s {} /var/lib/machines/{name}",
        image()
    ))
    .expect(0);
    let command = shell::join(["perl", "-e", SERVER, "81", "by default"])
        .into_string()
        .unwrap();
    let option = shell::join([format!("--service-command={command}")])
        .into_string()
        .unwrap();
    std::fs::write(
        &argument_file,
        format!("--init=stub --service-port=81 {option}"),
    )
    .unwrap();
    let job = Job::new(&image()).service(&name, "x").variable("WHO", "it");
    let report = Runner::default().run(&job.script(&[&read_from("x", 81)]));
    sh(&format!("rm {argument_file} /var/lib/machines/{name}")).expect(0);
    let report = report.expect(&Outcome::Success);
    assert_eq!(
        report.stage("build_script").text(),
        "it by default to 198.18.0.1\n",
        "{}",
        report.describe()
    );
}

/// GitLab's own name may be known to the host's /etc/hosts alone.
#[test]
fn hosts_file_of_the_host_may_be_bound() {
    let hosts = scratch("hosts").join("hosts");
    std::fs::write(&hosts, "203.0.113.7 gitlab.home\n").unwrap();
    for init in ["systemd", "stub", "none"] {
        let job = Job::new(&image())
            .service_of(server("db", &["5432"]))
            .script(&["getent hosts gitlab.home db"]);
        let report = Runner::default()
            .prepare_args(&[
                &format!("--bind-ro={}:/etc/hosts", hosts.display()),
                &format!("--init={init}"),
            ])
            .run(&job)
            .expect(&Outcome::Success);
        let shown = report.stage("build_script").text();
        assert!(
            shown.contains("203.0.113.7") && shown.contains("198.18.0.2"),
            "{}",
            report.describe()
        );
    }
    std::fs::remove_dir_all(hosts.parent().unwrap()).unwrap();
}
