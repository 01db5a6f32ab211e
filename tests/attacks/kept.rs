//! The files of a kept machine that has ended, which its job has filled with traps.

use nspawn_tests::gitlab_runner::{Job, Runner};
use nspawn_tests::{call, image, left_of, sh};

use crate::network::Server;
use crate::suite::{Control, Fixture, Outside, Suite};

/// Script that connects to the host's loopback, and writes to a file of the host.
const POISON: &str =
    "#!/bin/bash\nexec 3<>/dev/tcp/127.0.0.1/PORT\necho >OUTSIDE/owned\necho poisoned\n";

/// Puts the script in every file that a shell reads or runs on its own, and in programs, adds a link
/// to the host, and ends the machine.
const SET_TRAPS: &str = r#"
printf '%s' "$POISON" >/opt/poison
chmod 6755 /opt/poison
for file in root/.profile root/.bash_profile root/.bashrc root/.shrc .profile etc/profile etc/bash.bashrc ls cat; do
    cp -p /opt/poison "/$file"
done
ln -s "$OUTSIDE/secret" /opt/link
poweroff
sleep 60
"#;

/// Commands of an administrator in the shell that the host's line opens.
const LOOK: &str = "PATH=$PATH:.; head -n1 opt/poison; ls -d opt
    cat opt/link; opt/poison; ./ls; touch root/new; exit\n";

pub fn rows(suite: &mut Suite, _fixture: &Fixture) {
    for options in [&[][..], &["--layer-size=infinity"]] {
        suite.row(
            &format!("traps in the files of a kept machine {}", options.concat()),
            || traps_do_not_spring(options),
        );
    }
}

fn traps_do_not_spring(options: &[&str]) -> Control {
    let (outside, server) = (Outside::new(), Server::tcp("127.0.0.1", "secret"));
    let before = outside.state();
    let directory = outside.path.to_string_lossy().into_owned();
    let poison = POISON
        .replace("PORT", &server.port.to_string())
        .replace("OUTSIDE", &directory);
    let job = Job::new(&image())
        .variable("POISON", &poison)
        .variable("OUTSIDE", &directory)
        .script(&[SET_TRAPS]);
    let report = Runner::default()
        .prepare_args(&[options, &["--keep=always"]].concat())
        .run(&job);
    let log = report.stage("cleanup").text();
    let line = log.split_once("inspect it: ").map(|(_, rest)| rest);
    let line = line.and_then(|rest| rest.split_once("; remove it"));
    let (line, _) = line.unwrap_or_else(|| panic!("no line in {log}"));
    // With a terminal, the shell is interactive, and reads its files.
    let interactive = format!(
        "script --quiet --return --command '{}' /dev/null",
        line.replace('\'', r"'\''")
    );
    for shell in [line, &interactive] {
        let done = sh(&format!("cd /\n{shell} <<'END'\n{LOOK}END\n"));
        let output = (done.out() + &done.err()).replace('\r', "");
        assert!(
            output.contains("#!/bin/bash") && output.contains("opt\n"),
            "{output}"
        );
        assert!(
            !output.contains("poisoned") && !output.contains(&outside.secret),
            "{output}"
        );
        assert!(output.contains("Read-only file system"), "{output}");
        assert_eq!(outside.state(), before, "{output}");
        assert!(!server.was_reached(), "{output}");
    }
    check_traps(line, &server, &outside);
    call("nspawn-cleanup", [&report.machine]).expect(0);
    assert_eq!(left_of(&report.machine), "");
    Control::Host
}

/// Checks that the traps work: in a container without walls, which systemd-nspawn makes of the same
/// tree, and on the host.
fn check_traps(line: &str, server: &Server, outside: &Outside) {
    let nspawn =
        "systemd-nspawn --quiet --pipe --register=no --keep-unit --read-only --directory=.";
    let done = sh(&format!(
        "{line} sh -c 'mount -o remount,bind,exec,symfollow . && cd . && {nspawn} bash -l -c true'"
    ));
    assert!(server.was_reached(), "{}", done.describe());
    sh(&format!("{line} cat opt/poison | bash")).expect_out("poisoned");
    assert!(outside.path.join("owned").exists());
}
