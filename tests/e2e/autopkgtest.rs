//! The testbeds that `autopkgtest-virt-nspawn-ci` gives autopkgtest.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use nspawn_tests::{call, image, left_of, scratch, sh};

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
            .stderr(Stdio::piped());
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

    /// Sends a command and returns its answer, or nothing if the server ends.
    fn send(&mut self, command: &str) -> String {
        writeln!(self.input.as_mut().unwrap(), "{command}").unwrap();
        self.read_answer()
    }

    /// Sends a command and returns its answer without the leading `ok`.
    fn request(&mut self, command: &str) -> String {
        let answer = self.send(command);
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

    fn end(self) -> Option<i32> {
        self.end_with_errors().0
    }

    fn end_with_errors(mut self) -> (Option<i32>, String) {
        self.input = None;
        let done = self.child.wait_with_output().unwrap();
        let errors = String::from_utf8_lossy(&done.stderr).into_owned();
        (done.status.code(), errors)
    }
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
    let (place, here) = (server.request("open"), scratch("autopkgtest-files"));
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

/// Archives that a hostile testbed sends: commands that print one, the message, and the names that
/// are in the directory of the copies afterwards.
const HOSTILE: [(&str, &str, &str); 4] = [
    ("mknod node b 8 0; tar -c .", "Cannot mknod", ""),
    ("ln -s OUT link; tar -c .", "", "link\n"),
    (
        "mkdir link; echo evil >link/file; tar -c link/file",
        "cannot overwrite non-directory",
        "link\n",
    ),
    (
        "truncate --size=20M large; tar -c .",
        "larger than half of the free space",
        "link\n",
    ),
];

#[test]
fn hostile_archives_stay_in_the_directory_of_the_copies() {
    let here = scratch("autopkgtest-hostile");
    let place = here.display();
    sh(&format!(
        "cd {place} && mkdir out copies && echo kept >out/file && mount -t tmpfs -o size=16M none copies"
    ))
    .expect(0);
    for (script, message, names) in HOSTILE {
        let mut server = Server::start(&["--init=stub", "--network=none"]);
        server.request("open");
        // The root of a user namespace can't make device nodes, but can write them into an archive.
        let script = script.replace("OUT", &format!("{place}/out"));
        let command = server.request("print-execute-command").replace("%2F", "/");
        sh(&format!(
            "mkdir {place}/source && cd {place}/source && {{ {script}; }} | {} sh -c 'cat >/archive' && rm -r {place}/source",
            command.replace(',', " ")
        ))
        .expect(0);
        let tar = "rm /usr/bin/tar && printf '#!/bin/sh\\ncat /archive\\n' >/usr/bin/tar && chmod 755 /usr/bin/tar";
        server.execute(tar).expect(0);
        let is_copied = server.send(&format!("copyup /root/ {place}/copies/x/")) == "ok";
        assert_eq!(is_copied, message.is_empty(), "{script}");
        let (status, errors) = server.end_with_errors();
        assert!(errors.contains(message), "{script}: {errors}");
        assert_eq!(
            status,
            Some(if is_copied { 0 } else { 16 }),
            "{script}: {errors}"
        );
        let left = sh(&format!("ls -A {place}/copies/x && cat {place}/out/*"));
        assert_eq!(left.out(), format!("{names}kept\n"), "{script}");
    }
    sh(&format!("umount {place}/copies && rm -r {place}")).expect(0);
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
        done.expect_err(words);
    }
    call("autopkgtest-virt-nspawn-ci", ["a", "b"]).expect(16);
}
