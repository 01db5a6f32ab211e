//! Real workloads, which take minutes. They run in the long form only, each in a machine of its own
//! that boots the release's image. `tests/images` has those of docker and podman.

use std::process::{Command, Stdio};

use nspawn_tests::harness::{self, Harness, machine};

/// Time after which a workload is killed.
const LIMIT: &str = "2h";

/// A workload.
pub struct Workload {
    /// The workload, as users would call it.
    pub name: &'static str,
    packages: &'static str,
    script: &'static str,
}

/// Installs the packages, which are the script's arguments, and creates the user `ci`.
///
/// An administrator whose network needs a certificate of its own binds it into
/// `/usr/local/share/ca-certificates` of all machines, by `prepare.args`.
const INSTALL: &str = r#"exec 2>&1
export LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive
update-ca-certificates >/dev/null
release=$(. /etc/os-release; echo "$VERSION_CODENAME")
echo "deb-src http://deb.debian.org/debian $release main" >/etc/apt/sources.list.d/source.list
apt-get update -qq
apt-get install -qq --no-install-recommends "$@" >/dev/null
useradd --create-home --shell /bin/bash ci
as_ci() { runuser -u ci -- "$@"; }
cd /home/ci
"#;

/// The packages that are built from their sources, with their own tests.
const BUILDS: [&str; 10] = [
    "xz-utils",
    "sqlite3",
    "nginx",
    "redis",
    "curl",
    "postgresql",
    "git",
    "openssl",
    "systemd",
    "python3",
];

/// Builds the package `$BUILD`. Some packages only depend on the one with the version in its name.
const BUILD: &str = r#"
source=$(apt-cache depends "$BUILD" | sed -n "s/^ *Depends: \($BUILD[-.]\?[0-9.]*[0-9]\)$/\1/p" | head -n 1)
source=${source:-$BUILD}
apt-get build-dep -qq --no-install-recommends "$source" >/dev/null
as_ci apt-get source -qq "$source" >/dev/null
cd */
as_ci env DEB_BUILD_OPTIONS=parallel=$(nproc) dpkg-buildpackage -b -us -uc >../log || { tail -n 60 ../log; exit 1; }
ls ../*.deb
"#;

/// The workloads, besides the builds.
pub const WORKLOADS: [Workload; 10] = [
    Workload {
        name: "`npm ci` and `npm test`",
        packages: "nodejs npm",
        script: r#"
mkdir p; cd p
echo '{ "name": "p", "version": "1.0.0", "scripts": { "test": "mocha" }, "devDependencies": { "mocha": "^10" } }' >package.json
mkdir test; echo 'it("runs", () => {});' >test/t.js
export NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt
npm install --package-lock-only >/dev/null; npm ci; npm test | grep '1 passing'"#,
    },
    Workload {
        name: "`mvn test`",
        packages: "maven default-jdk-headless",
        script: r#"
mkdir -p src/test/java
cat >pom.xml <<'END'
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion><groupId>g</groupId><artifactId>a</artifactId><version>1</version>
  <properties><maven.compiler.source>17</maven.compiler.source><maven.compiler.target>17</maven.compiler.target></properties>
  <dependencies><dependency><groupId>junit</groupId><artifactId>junit</artifactId><version>4.13.2</version></dependency></dependencies>
</project>
END
echo 'public class ATest { @org.junit.Test public void runs() {} }' >src/test/java/ATest.java
mvn -B test | grep 'Tests run: 1, Failures: 0'"#,
    },
    Workload {
        name: "`go test` with a dependency",
        packages: "golang-go",
        script: r#"
mkdir p; cd p; go mod init example.com/p
printf 'package p\nimport ("testing"; "github.com/google/go-cmp/cmp")\nfunc TestA(t *testing.T) { if !cmp.Equal(1, 1) { t.Fail() } }\n' >p_test.go
go mod tidy; go test -v -race=false ./... | grep PASS"#,
    },
    Workload {
        name: "`cargo test` with a dependency",
        packages: "cargo",
        script: r#"
cargo new --vcs none p; cd p; echo 'itoa = "1"' >>Cargo.toml
echo '#[test] fn t() { assert_eq!(itoa::Buffer::new().format(7), "7"); }' >>src/main.rs
cargo test | grep '1 passed'"#,
    },
    Workload {
        name: "`pip install` from the index",
        packages: "python3-venv",
        script: "python3 -m venv v; v/bin/pip install -q six pytest; echo 'def test_a(): import six' >test_a.py; v/bin/pytest | grep '1 passed'",
    },
    Workload {
        name: "Chromium without a window, in its sandbox",
        packages: "chromium fonts-dejavu-core",
        script: r#"
echo '<p id=p></p><script>document.getElementById("p").append(6 * 7)</script>' >a.html
as_ci chromium --headless --disable-gpu --dump-dom file:///home/ci/a.html | grep '<p id="p">42</p>'"#,
    },
    Workload {
        name: "a database migration",
        packages: "postgresql alembic python3-psycopg2",
        script: r#"
systemctl start postgresql
as_postgres() { runuser -u postgres -- "$@"; }
mkdir /srv/m; chown postgres /srv/m; cd /srv/m
as_postgres createdb d
as_postgres alembic init a >/dev/null
sed -i 's|^sqlalchemy.url.*|sqlalchemy.url = postgresql:///d|' alembic.ini
as_postgres alembic revision -m one --rev-id one >/dev/null
sed -i '/def upgrade/,/pass/s/pass/op.create_table("t", sa.Column("x", sa.Integer))/' a/versions/one_one.py
as_postgres alembic upgrade head
as_postgres psql -Atc 'select count(*) from t' d | grep -x 0"#,
    },
    Workload {
        name: "an Ansible run",
        packages: "ansible-core python3",
        script: r#"
cat >p.yml <<'END'
- hosts: localhost
  connection: local
  tasks:
    - apt: { name: nginx, state: present }
    - systemd_service: { name: nginx, state: started }
    - uri: { url: "http://localhost" }
END
ansible-playbook p.yml | grep 'failed=0'"#,
    },
    Workload {
        name: "`mmdebstrap --mode=unshare`",
        packages: "mmdebstrap uidmap",
        script: r#"as_ci mmdebstrap --mode=unshare --variant=apt "$release" t.tar; tar -tf t.tar ./etc/os-release"#,
    },
    Workload {
        name: "`sbuild` in its mode unshare",
        packages: "sbuild mmdebstrap uidmap zstd",
        script: r#"
as_ci mkdir -p .cache/sbuild
as_ci mmdebstrap --mode=unshare --variant=buildd "$release" ".cache/sbuild/$release-amd64.tar.zst"
as_ci apt-get source -qq --download-only hostname
as_ci sbuild --chroot-mode=unshare --dist="$release" --no-run-lintian hostname_*.dsc >log || { tail -n 40 log; exit 1; }
ls hostname_*.deb"#,
    },
];

/// Runs all workloads.
pub fn run(harness: &mut Harness) {
    for workload in WORKLOADS {
        let Workload {
            name,
            packages,
            script,
        } = workload;
        harness.run(name, || work(packages, script, ""));
    }
    for package in BUILDS {
        let name = format!("`dpkg-buildpackage` of {package}, with its tests");
        harness.run(&name, || work("build-essential", BUILD, package));
    }
}

/// Runs a script in a new machine with these packages. `build` is the value of `$BUILD` in it.
fn work(packages: &str, script: &str, build: &str) -> harness::Row {
    let machine = machine(&[]);
    let script = format!("{INSTALL}{script}");
    let done = Command::new("timeout")
        .args(["--kill-after=10", LIMIT, "nspawn-run"])
        .args([&format!("--setenv=BUILD={build}"), &machine.name])
        .args(["bash", "-e", "-o", "pipefail", "-c", &script, "-"])
        .args(packages.split_whitespace())
        .stdin(Stdio::null())
        .output()
        .expect("timeout can be executed");
    let has_passed = done.status.success();
    harness::Row {
        cells: format!("booted {}", if has_passed { "works" } else { "fails" }),
        below: if has_passed {
            String::new()
        } else {
            String::from_utf8_lossy(&done.stdout).into_owned()
        },
        has_passed,
    }
}
