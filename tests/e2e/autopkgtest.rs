//! The testbeds that `autopkgtest-virt-nspawn-ci` gives autopkgtest.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use nspawn_tests::{call, image, left_of, sh};

/// A virtualization server, driven by the protocol of autopkgtest.
struct Server {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Server {
    fn start(options: &[&str]) -> Self {
        let mut command = Command::new("autopkgtest-virt-nspawn-ci");
        command
            .args(options)
            .arg(image())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let (input, output) = (
            child.stdin.take(),
            BufReader::new(child.stdout.take().unwrap()),
        );
        let mut server = Self {
            child,
            input,
            output,
        };
        assert_eq!(server.read_answer(), "ok");
        server
    }

    fn read_answer(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Sends a command and returns its answer without the leading `ok`.
    fn request(&mut self, command: &str) -> String {
        writeln!(self.input.as_mut().unwrap(), "{command}").unwrap();
        let answer = self.read_answer();
        answer
            .strip_prefix("ok")
            .unwrap_or_else(|| panic!("{command}: {answer:?}"))
            .trim_start()
            .to_owned()
    }

    fn execute(&mut self, line: &str) -> nspawn_tests::Done {
        let command = self.request("print-execute-command").replace("%2F", "/");
        let words: Vec<_> = command.split(',').chain(["sh", "-c", line]).collect();
        call(words[0], &words[1..])
    }

    fn end(mut self) -> Option<i32> {
        self.input = None;
        self.child.wait().unwrap().code()
    }
}

fn scratch(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("e2e-autopkgtest-{name}-{}", std::process::id()));
    fs::create_dir_all(&path).unwrap();
    path
}

#[test]
fn testbed_is_opened_reverted_and_closed() {
    let name = format!("autopkgtest-{}", std::process::id());
    let mut server = Server::start(&[&format!("--name={name}")]);
    assert!(
        server
            .request("capabilities")
            .split(' ')
            .any(|word| word == "revert-full-system")
    );
    let place = server.request("open");
    server
        .execute(&format!(
            "test $(id -u) = 0 && test -d {place} && touch {place}/x /root/x"
        ))
        .expect(0);
    assert_eq!(
        server
            .execute("systemctl is-system-running; exit 7")
            .expect(7)
            .out(),
        "running\n"
    );
    let place = server.request("revert");
    server
        .execute(&format!("test -d {place} && test ! -e /root/x"))
        .expect(0);
    server.request("close");
    assert_eq!(left_of(&name), "");
    server.request("open");
    server.request("quit");
    assert_eq!(left_of(&name), "");
    assert_eq!(server.end(), Some(0));
}

#[test]
fn testbed_is_removed_when_its_caller_disconnects() {
    let name = format!("autopkgtest-gone-{}", std::process::id());
    let mut server = Server::start(&[&format!("--name={name}"), "--init=stub"]);
    server.request("open");
    let _ = server.end();
    assert_eq!(left_of(&name), "");
}

#[test]
fn files_and_trees_are_copied_both_ways() {
    let mut server = Server::start(&["--init=stub"]);
    let (place, here) = (server.request("open"), scratch("files"));
    let odd = here.join("a b,c%d");
    fs::write(&odd, b"\0bytes\n").unwrap();
    fs::set_permissions(&odd, fs::Permissions::from_mode(0o751)).unwrap();
    let (here, odd_there) = (here.to_str().unwrap(), "a%20b%2Cc%25d");
    server.request(&format!("copydown {here}/{odd_there} {place}/{odd_there}"));
    server.request(&format!("copyup {place}/{odd_there} {here}/back"));
    assert_eq!(fs::read(format!("{here}/back")).unwrap(), b"\0bytes\n");
    assert_eq!(
        server
            .execute(&format!("stat -c %a '{place}/a b,c%d'"))
            .expect(0)
            .out(),
        "751\n"
    );
    sh(&format!("mkdir -p {here}/tree/deep; ln -s /etc/passwd {here}/tree/link; echo x >{here}/tree/deep/file"))
        .expect(0);
    server.request(&format!("copydown {here}/tree/ {place}/tree/"));
    server
        .execute(&format!(
            "cd {place}/tree && test -L link && echo y >>deep/file && chmod u+s deep/file"
        ))
        .expect(0);
    server.request(&format!("copyup {place}/tree/ {here}/out/"));
    assert_eq!(
        fs::read_to_string(format!("{here}/out/deep/file")).unwrap(),
        "x\ny\n"
    );
    assert_eq!(
        fs::metadata(format!("{here}/out/deep/file"))
            .unwrap()
            .permissions()
            .mode()
            & 0o7000,
        0
    );
    server.request("quit");
    fs::remove_dir_all(here).unwrap();
}

#[test]
fn invalid_requests_end_the_server() {
    for (image, line, words) in [
        ("no-such-image", "open", "make a machine of no-such-image"),
        (&*image(), "juggle", "unknown command 'juggle'"),
        (&*image(), "copydown x", "needs two paths"),
    ] {
        let mut command = Command::new("autopkgtest-virt-nspawn-ci");
        let done =
            nspawn_tests::finish(command.arg(image), format!("{line}\n").as_bytes()).expect(16);
        assert!(done.err().contains(words), "{}", done.describe());
    }
    call("autopkgtest-virt-nspawn-ci", ["a", "b"]).expect(16);
}
