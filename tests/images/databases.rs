//! Services of jobs with real databases and their clients.

use nspawn_tests::gitlab_runner::{Job, Outcome, Runner};
use nspawn_tests::left_of;
use serde_json::json;

use crate::lab::{FULL, Image, script};

/// Installs PostgreSQL as a unit, and Redis, or Valkey in its place, as a program for a service
/// command.
const INSTALL: &str = r#"
export DEBIAN_FRONTEND=noninteractive
apt-get update
apt-get install --yes --no-install-recommends postgresql
apt-get install --yes --no-install-recommends redis-server redis-tools ||
    apt-get install --yes --no-install-recommends valkey-server valkey-tools
systemctl disable redis-server valkey-server || true
for kind in server cli; do
    ln -sf "$(command -v redis-$kind || command -v valkey-$kind)" /usr/local/bin/store-$kind
done
cd /etc/postgresql/*/main
echo "listen_addresses = '*'" >conf.d/ci.conf
echo 'host all all samenet trust' >>pg_hba.conf
"#;

#[test]
fn postgresql_and_redis_serve_a_job() {
    let install = script(INSTALL);
    let image = Image::from_tar(
        "databases",
        &FULL,
        &["--script", install.to_str().unwrap(), "--no-boot-test"],
    );
    let job = Job::new(&image.name)
        .service_of(json!({
            "name": image.name, "alias": "db postgres",
            "variables": [{ "key": "HEALTHCHECK_TCP_PORT", "value": "5432", "public": true }],
        }))
        .service_of(json!({
            "name": image.name, "alias": "cache",
            "command": ["store-server", "--bind", "0.0.0.0", "--protected-mode", "no", "--save", ""],
            "variables": [{ "key": "HEALTHCHECK_TCP_PORT", "value": "6379", "public": true }],
        }))
        .script(&[
            "psql -h postgres -U postgres -qc 'create table answers as select 6 * 7 as answer'",
            "store-cli -h cache set question \"$(psql -h db -U postgres -Atc 'select answer from answers')\"",
            "store-cli -h cache get question",
        ])
        .after_script(&["psql -h db -U postgres -Atc 'select count(*) from answers'"]);
    let report = Runner::default().run(&job).expect(&Outcome::Success);
    assert_eq!(
        report.stage("build_script").text(),
        "OK\n42\n",
        "{}",
        report.describe()
    );
    assert_eq!(report.stage("after_script").text(), "1\n");
    let prepared = report.stage("prepare").text();
    assert!(
        !prepared.contains("does not listen") && !prepared.contains("has ended"),
        "{prepared}"
    );
    assert_eq!(left_of(&report.machine), "");
}
