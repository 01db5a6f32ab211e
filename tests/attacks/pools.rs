//! Things of which the kernel has only so many, for a user or for the whole host, and the host's
//! journal. A job takes all that it can get, and other machines and the host go on.

use std::fs;
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::inotify::{InitFlags, Inotify};
use nspawn_common::machine::output;
use nspawn_tests::gitlab_runner::{Job, Outcome, Runner};
use nspawn_tests::{BackgroundCommand, Machine, call, image, left_of, sh};
use serde_json::json;

use crate::probe::Place;
use crate::suite::{Control, Fixture, Suite, name};

/// Takes all inotify instances that the kernel gives to several users, prints their number, and
/// holds them for the seconds in `$ARGV[1]`.
const INOTIFY: &str = r#"
my $taken = 0;
for my $user (0, 1, 1000, 60000) {
    $> = $user;
    $taken++ while syscall($ARGV[0] + 0, 0) >= 0;
    $> = 0;
}
$| = 1;
print "on\n$taken\n";
sleep $ARGV[1];
"#;

/// Creates up to 3000 cgroups below the directory `$1`, prints their number, and removes them.
const CGROUPS: &str = r#"
mkdir "$1/pool" && cd "$1/pool" || exit 1
for number in $(seq 3000); do mkdir $number 2>/dev/null || break; done
ls -d [0-9]* | wc -l
rmdir [0-9]* && cd / && rmdir "$1/pool"
"#;

/// Creates a cgroup in each other, and prints their number.
const DEEP_CGROUPS: &str = r#"
cd "$1" || exit 1
number=0
while [ $number -lt 100 ] && mkdir deep 2>/dev/null; do cd deep; number=$((number + 1)); done
while [ "${PWD##*/}" = deep ]; do cd ..; rmdir deep; done
echo $number
"#;

/// Writes to the console for some seconds, in long lines.
const FLOOD: &str = "timeout 4 sh -c 'while :; do head -c 30000 /dev/urandom | base64 -w0; echo; done' >/dev/console";

/// Writes 8 MiB to the machine's own journal, which a host could forward to its own.
const LOG: &str = "yes $(seq -s, 500) | head -c 8M | logger --tag=flood; journalctl --flush --quiet; \
    journalctl --sync; journalctl --identifier=flood --lines=100 | grep --quiet 100,101";

/// Writes 8 MiB as a service, before it is ready.
const SERVICE: &str = "yes $(seq -s, 500) | head -c 8M; echo the last line; \
    exec perl -MIO::Socket::INET -e '$s = IO::Socket::INET->new(LocalPort => 80, Listen => 1); sleep 60'";

/// Number of bytes that a machine may write to the host's journal, in all.
const JOURNAL_LIMIT: usize = 64 << 10;
/// Number of bytes in the host's journal about a job with a service, at most.
const JOB_LIMIT: usize = 1 << 20;

pub fn rows(suite: &mut Suite, fixture: &Fixture) {
    suite.row("taking all inotify instances, as several users", || {
        inotify_instances_of_others_are_left(fixture)
    });
    suite.row("namespaces that are counted for the host's root", || {
        namespaces_belong_to_the_machines_user(fixture)
    });
    suite.row("taking all numbers of cgroups", || {
        cgroups_are_limited(fixture, CGROUPS, 3000)
    });
    suite.row("deep cgroups, which slow the kernel down", || {
        cgroups_are_limited(fixture, DEEP_CGROUPS, 100)
    });
    suite.row("filling the host's journal by the console", || {
        journal_keeps_messages_of_others(fixture)
    });
    suite.row("filling the host's journal by the machine's own", || {
        let written = written_to_journal(|| drop(fixture.attacker.sh(LOG).expect(0)));
        assert!(written < JOURNAL_LIMIT, "{written} bytes");
        Control::Absent
    });
    suite.row("filling the host's journal by a service", || {
        output_of_services_is_not_in_the_journal()
    });
    suite.row("opening files without limit as the machine's pasta", || {
        files_of_pasta_are_limited(fixture)
    });
}

/// Starts a script in Perl, and waits until it has taken what it can.
fn start(place: Place, script: &str, arguments: &[&str]) -> BackgroundCommand {
    // The limit of open files is above that of the pool.
    let program = [
        "timeout",
        "30",
        "prlimit",
        "--nofile=20000",
        "perl",
        "-e",
        script,
    ];
    let words = [&program, arguments].concat();
    BackgroundCommand::start_command(&mut place.command(&words))
}

fn inotify_instances_of_others_are_left(fixture: &Fixture) -> Control {
    let call_number = libc::SYS_inotify_init1.to_string();
    let limit: usize = fs::read_to_string("/proc/sys/fs/inotify/max_user_instances")
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let is_left = || Inotify::init(InitFlags::IN_CLOEXEC).is_ok();
    let host = start(Place::Host, INOTIFY, &[&call_number, "0.2"]);
    let was_left = is_left();
    host.wait().expect(0);
    assert!(
        !was_left,
        "the attack takes not all at its control, so it proves nothing"
    );
    let attack = start(
        Place::Machine(&fixture.attacker),
        INOTIFY,
        &[&call_number, "20"],
    );
    assert!(is_left());
    others_go_on(fixture);
    attack.signal("TERM");
    let taken: usize = attack.wait().out().trim().parse().unwrap();
    assert!(
        (limit / 2..=limit).contains(&taken),
        "{taken} instances of {limit}"
    );
    Control::Host
}

/// Creates, uses and removes another machine, and starts a unit of the host.
#[track_caller]
fn others_go_on(fixture: &Fixture) {
    let machine = Machine::new();
    machine.run(["true"]).expect(0);
    fixture.neighbour.run(["true"]).expect(0);
    call("nspawn-cleanup", [&machine.name]).expect(0);
    assert_eq!(left_of(&machine.name), "");
    sh("systemd-run --quiet --wait --property=PrivateMounts=yes true").expect(0);
}

fn namespaces_belong_to_the_machines_user(fixture: &Fixture) -> Control {
    let (attacker, neighbour) = (
        fixture.attacker.namespace_owner(),
        fixture.neighbour.namespace_owner(),
    );
    let users = fs::read_to_string(fixture.attacker.paths().uid_range_file()).unwrap();
    assert!(users.contains(&attacker.to_string()), "{attacker} {users}");
    assert_ne!(attacker, neighbour);
    assert_eq!(fixture.unconfined.namespace_owner(), 0);
    Control::Unconfined
}

fn cgroups_are_limited(fixture: &Fixture, script: &str, most: usize) -> Control {
    let script = format!("timeout 60 sh -c '{script}' sh");
    let place = sh("sed -n 's/^0:://p' /proc/self/cgroup").expect(0).out();
    let host = sh(&format!("{script} /sys/fs/cgroup{}", place.trim()));
    let count = |done: nspawn_tests::Done| done.expect(0).out().trim().parse::<usize>().unwrap();
    assert_eq!(count(host), most, "the control is limited too");
    let taken = count(fixture.attacker.sh(&format!("{script} /sys/fs/cgroup")));
    assert!(taken < most, "{taken}");
    others_go_on(fixture);
    Control::Host
}

fn journal_keeps_messages_of_others(fixture: &Fixture) -> Control {
    let word = name();
    let entries = |unit: &str| {
        sh("journalctl --sync").expect(0);
        let command = format!("journalctl --quiet --output=export --unit={unit} | wc --bytes");
        sh(&command).out().trim().parse::<usize>().unwrap()
    };
    let control = format!("control-{word}");
    sh(&format!(
        "systemd-run --quiet --wait --unit={control} sh -c \"yes $(seq -s, 2000) | head -c 4M\""
    ))
    .expect(0);
    assert!(
        entries(&control) > JOURNAL_LIMIT,
        "the journal limits its control"
    );
    sh(&format!("logger --tag={word} 'a message of the host'")).expect(0);
    let unit = format!("nspawn-{}.service", fixture.attacker.name);
    let (before, begin) = (entries(&unit), Instant::now());
    fixture.attacker.sh(FLOOD).expect(124);
    fixture
        .attacker
        .sh("echo the last line >/dev/console")
        .expect(0);
    assert!(begin.elapsed() < Duration::from_secs(30));
    let written = entries(&unit) - before;
    assert!(written < JOURNAL_LIMIT, "{written} bytes");
    sh(&format!(
        "journalctl --quiet --identifier={word} | grep --quiet 'of the host'"
    ))
    .expect(0);
    let file = fixture.attacker.paths().console_output();
    let length = fs::metadata(&file).unwrap().len();
    assert!(
        length > output::KEPT / 2,
        "the attack writes {length} bytes, so it proves nothing"
    );
    assert!(length <= 2 * output::KEPT, "{length} bytes are recorded");
    assert!(output::read(&file).unwrap().contains("the last line"));
    others_go_on(fixture);
    Control::Host
}

/// Returns the number of bytes that the host's journal gets meanwhile.
fn written_to_journal(work: impl FnOnce()) -> usize {
    let cursor = sh(
        "journalctl --sync; journalctl --quiet --lines=1 --show-cursor | sed -n 's/^-- cursor: //p'",
    );
    let cursor = cursor.expect(0).out();
    work();
    let command = format!(
        "journalctl --sync; journalctl --quiet --output=export --after-cursor='{}' | wc --bytes",
        cursor.trim()
    );
    sh(&command).expect(0).out().trim().parse().unwrap()
}

fn output_of_services_is_not_in_the_journal() -> Control {
    let service = json!({ "name": image(), "alias": "x", "command": ["sh", "-c", SERVICE] });
    let job = Job::new(&image())
        .service_of(service)
        .script(&["exec 3<>/dev/tcp/x/80", "echo connected"]);
    let runner = Runner::default().prepare_args(&["--init=stub"]);
    let written = written_to_journal(|| {
        let report = runner.run(&job).expect(&Outcome::Success);
        report.expect_log("connected");
    });
    assert!(written < JOB_LIMIT, "{written} bytes");
    Control::Absent
}

fn files_of_pasta_are_limited(fixture: &Fixture) -> Control {
    let unit = format!("pasta-{}.service", fixture.attacker.name);
    let limit = sh(&format!(
        "awk '/^Max open files/ {{ print $5 }}' /proc/$(systemctl show --property=MainPID --value {unit})/limits"
    ));
    assert_eq!(limit.expect(0).out().trim(), "16384");
    Control::Absent
}
