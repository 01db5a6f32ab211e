//! Transfer of images from one host to another, by a web server, with a signature.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use nspawn_tests::{call, finish, sh};

use crate::lab::{Image, SMALL, expect_failure, listed, scratch, script};

/// Key ring of systemd-pull.
const KEYS: &str = "/etc/systemd/import-pubring.gpg";

/// A web server for a directory.
struct Server {
    child: Child,
    url: String,
}

/// A web server that once never finishes its answer about the file with a suffix: it sends the whole
/// head of the answer or nothing, three seconds after it was asked.
const SILENT: &str = "
import http.server, sys, time
suffix, port = sys.argv[1:]
class Handler(http.server.SimpleHTTPRequestHandler):
    silent = True
    def stop(self):
        if Handler.silent and self.path.endswith(suffix):
            Handler.silent = False
            time.sleep(1000)
    def do_GET(self):
        if self.path.endswith(suffix):
            time.sleep(3)
        super().do_GET()
    def send_error(self, *rest):
        self.stop()
        super().send_error(*rest)
    def copyfile(self, *rest):
        self.stop()
        super().copyfile(*rest)
http.server.ThreadingHTTPServer(('127.0.0.1', int(port)), Handler).serve_forever()";

impl Server {
    fn new(dir: &Path) -> Self {
        Self::start(dir, &["-m", "http.server", "--bind", "127.0.0.1"])
    }

    fn start(dir: &Path, program: &[&str]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        // The kernel chooses higher ports for connections.
        let port = 20_000 + std::process::id() % 1_000 * 12 + COUNT.fetch_add(1, Ordering::Relaxed);
        let mut command = Command::new("python3");
        command.args(program).arg(port.to_string()).current_dir(dir);
        let child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let up = format!(
            "until python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", {port}))' \
                          2>/dev/null; do sleep 0.1; done"
        );
        call("timeout", ["20", "sh", "-c", &up]).expect(0);
        Self {
            child,
            url: format!("http://127.0.0.1:{port}"),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A signing key. [`Key::trust`] makes it the only key that systemd-pull trusts.
struct Key {
    home: String,
}

impl Key {
    fn new() -> Self {
        let key = Self {
            home: scratch("key").to_str().unwrap().to_owned(),
        };
        sh(&format!("mkdir -m 700 {}", key.home)).expect(0);
        let make = "gpg --batch --quiet --passphrase '' --quick-generate-key images@example default default never";
        key.sh(make);
        key
    }

    fn sh(&self, line: &str) {
        sh(&format!("export GNUPGHOME={}; {line}", self.home)).expect(0);
    }

    fn trust(&self) {
        self.sh(&format!("gpg --export >{KEYS}"));
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        let _ = fs::remove_file(KEYS);
        let _ = sh(&format!("GNUPGHOME={} gpgconf --kill all", self.home));
    }
}

#[test]
fn exported_image_is_pulled_only_with_a_trusted_signature() {
    let (key, dir) = (Key::new(), scratch("exported"));
    fs::create_dir_all(&dir).unwrap();
    // The archive keeps links, owners, modes and extended attributes.
    let make = script("ln -s /nowhere /link; date >/file; chmod 4711 /file");
    let image = Image::from_tar("source", &SMALL, &["--script", make.to_str().unwrap()]);
    sh(&format!(
        "chown 12:34 {0}/etc && chmod 1775 {0}/etc",
        image.file("").display()
    ))
    .expect(0);
    let export = |options: &[&str]| {
        let mut command = image.command("export", &[&[dir.to_str().unwrap()], options].concat());
        finish(command.env("GNUPGHOME", &key.home), b"").expect(0)
    };
    export(&["--sign", "images@example"]);
    let mut names: Vec<_> = fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    let file = format!("{}.tar.xz", image.current());
    assert_eq!(names, ["SHA256SUMS", "SHA256SUMS.gpg", &*file]);
    // The end of an archive is two blocks. systemd-pull 262 sometimes fails if more data follow.
    let unpadded = "import io, lzma, sys, tarfile; data = lzma.open(sys.argv[1]).read(); \
                    tar = tarfile.open(fileobj=io.BytesIO(data)); tar.getmembers(); print(len(data) - tar.offset)";
    assert_eq!(
        call(
            "python3",
            ["-c", unpadded, dir.join(&file).to_str().unwrap()]
        )
        .expect(0)
        .out(),
        "1024\n"
    );
    let server = Server::new(&dir);
    let url = format!("{}/{file}", server.url);
    let pulled = Image::named("pulled");
    let pull = |options: &[&str]| {
        finish(
            Command::new("nspawn-image")
                .args(["pull", &url, &pulled.name])
                .args(options),
            b"",
        )
    };
    let expect_refusal = |reason: &str| {
        expect_failure(pull(&[]), "can't fetch");
        assert!(
            listed(&pulled.name).is_none() && !pulled.versions_dir().exists(),
            "{reason}"
        );
        assert_eq!(pulled.leftovers(), "", "{reason}");
    };
    expect_refusal("no trusted keys");
    Key::new().trust();
    key.trust();
    let good = pull(&[]).expect(0);
    good.expect_err("is now");
    assert_eq!(
        pulled.current().rsplit('_').next(),
        image.current().rsplit('_').next()
    );
    let list = |image: &Image| {
        sh(&format!(
            "cd {} && find . -printf '%p %m %U:%G %l\\n' | sort",
            image.file("").display()
        ))
        .expect(0)
        .out()
    };
    assert_eq!(list(&pulled), list(&image));
    assert!(pull(&[]).expect(0).err().contains("already exists"));
    pulled.run("remove", &[]).expect(0);

    let path = dir.join(&file);
    let content = fs::read(&path).unwrap();
    fs::write(&path, [&content[..], b"x"].concat()).unwrap();
    expect_refusal("a longer file");
    let mut changed = content.clone();
    changed[100] ^= 1;
    fs::write(&path, changed).unwrap();
    expect_refusal("a changed file");
    fs::write(&path, &content).unwrap();
    sh(&format!(
        "cd {0} && mv SHA256SUMS.gpg keep && sha256sum -b {file} >SHA256SUMS",
        dir.display()
    ))
    .expect(0);
    expect_refusal("no signature");
    pull(&["--verify=checksum"]).expect(0);
    pulled.run("remove", &[]).expect(0);
    sh(&format!(
        "cd {} && mv keep SHA256SUMS.gpg && echo >>SHA256SUMS",
        dir.display()
    ))
    .expect(0);
    expect_refusal("checksums without a valid signature");
    export(&["--sign", "images@example"]);
    let other = Key::new();
    other.trust();
    expect_refusal("a signature by another key");
    key.trust();
    pull(&[]).expect(0);
    // An export without --sign removes an old signature, which would be wrong.
    export(&[]);
    assert!(!dir.join("SHA256SUMS.gpg").exists());
    assert_eq!(
        fs::read_to_string(dir.join("SHA256SUMS"))
            .unwrap()
            .matches(&file)
            .count(),
        1
    );
}

#[test]
fn pulled_version_follows_the_previous_one() {
    let dir = scratch("followed");
    fs::create_dir_all(&dir).unwrap();
    let image = Image::from_tar("followed", &SMALL, &[]);
    let pulled = Image::named("follower");
    let server = Server::new(&dir);
    for _ in 0..3 {
        image.run("export", &[dir.to_str().unwrap()]).expect(0);
        let url = format!("{}/{}.tar.xz", server.url, image.current());
        call(
            "nspawn-image",
            ["pull", "--verify=checksum", &url, &pulled.name],
        )
        .expect(0);
        image.run("update", &["--no-upgrade"]).expect(0);
    }
    assert_eq!(pulled.versions().len(), 2);
    pulled.run("rollback", &[]).expect(0);
    assert_eq!(
        (pulled.current(), pulled.leftovers()),
        (pulled.versions().remove(0), String::new())
    );
    assert_eq!(
        fs::read_to_string(dir.join("SHA256SUMS"))
            .unwrap()
            .lines()
            .count(),
        3
    );
}

/// systemd-pull 252 sometimes stalls even with a good server, at any of the files.
fn expect_second_attempt(name: &str, silent_suffix: &str) {
    let dir = scratch(name);
    fs::create_dir_all(&dir).unwrap();
    let image = Image::from_tar(name, &SMALL, &[]);
    image.run("export", &[dir.to_str().unwrap()]).expect(0);
    let server = Server::start(&dir, &["-c", SILENT, silent_suffix]);
    let pulled = Image::named(&format!("{name}-pulled"));
    let url = format!("{}/{}.tar.xz", server.url, image.current());
    call(
        "nspawn-image",
        ["pull", "--verify=checksum", &url, &pulled.name],
    )
    .expect(0);
    assert_eq!(pulled.leftovers(), "");
}

#[test]
fn pull_that_stalls_before_its_verification_starts_again() {
    expect_second_attempt("silent-at-first", ".sha256");
}

#[test]
fn pull_that_stalls_amid_its_verification_starts_again() {
    expect_second_attempt("silent-later", "SHA256SUMS");
}
