//! Attacks as scripts, which say how they went.

use std::process::Command;

use nspawn_tests::{BackgroundCommand, Machine, finish};

use crate::suite::{Control, Field};

/// For how long a script may run, in seconds.
const LIMIT: &str = "20";

const SHELL: &str = r#"
end() { printf '%s\n' "$*" | tr '\n' ' '; exit 0; }
got_in() { end "got in: $*"; }
kept_out() { end "kept out: $*"; }
not_here() { end "not here: $*"; }
# A tool that is not there would keep everybody out.
attempt() {
    why=$("$@" 2>&1 >/dev/null) && return
    code=$?
    [ $code -lt 126 ] || { echo "can't run: $*: $why"; exit $code; }
    return $code
}
"#;

const PERL: &str = r#"
$| = 1;
sub got_in { print "got in: @_\n"; exit }
sub kept_out { print "kept out: @_\n"; exit }
sub not_here { print "not here: @_\n"; exit }
# By the error's number: EPERM, EACCES; ENOSYS.
sub verdict { $_[0] >= 0 ? got_in "" : $! == 1 || $! == 13 ? kept_out "$!" : $! == 38 ? not_here "$!" : got_in "as far as: $!" }
"#;

/// Where a script runs, as root.
#[derive(Clone, Copy)]
pub enum Place<'a> {
    Host,
    Machine(&'a Machine),
}

/// A script, and what it is given.
pub struct Probe {
    interpreter: [&'static str; 2],
    script: String,
    arguments: Vec<String>,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    In,
    Out,
    /// The kernel has no such thing.
    Missing,
}

impl Probe {
    /// A shell script that ends by `got_in`, `kept_out` or `not_here`.
    pub fn shell(script: &str, arguments: &[&str]) -> Self {
        Self::new(
            ["sh", "-c"],
            &[SHELL, script].concat(),
            &[&["probe"], arguments].concat(),
        )
    }

    /// The same in Perl, of which images have the base.
    pub fn perl(script: &str, arguments: &[&str]) -> Self {
        Self::new(["perl", "-e"], &[PERL, script].concat(), arguments)
    }

    /// A system call with Perl's `arguments`, which gets in unless it is refused.
    pub fn system_call(number: nix::libc::c_long, arguments: &str) -> Self {
        Self::perl(
            &format!("my @arguments = ({arguments}); verdict(syscall({number}, @arguments))"),
            &[],
        )
    }

    fn new(interpreter: [&'static str; 2], script: &str, arguments: &[&str]) -> Self {
        let arguments = arguments
            .iter()
            .map(|argument| (*argument).to_owned())
            .collect();
        Self {
            interpreter,
            script: script.to_owned(),
            arguments,
        }
    }

    /// Makes sure that it gets in at `control`. Returns where it did.
    #[track_caller]
    pub fn prove(&self, control: Control, field: &Field) -> Control {
        match field.place(control).map(|place| self.run(place)) {
            Some((Verdict::In, _)) => control,
            Some((Verdict::Out, said)) => {
                panic!("it does not get in where it must, so it proves nothing: {said}")
            }
            Some((Verdict::Missing, _)) | None => Control::Nowhere,
        }
    }

    #[track_caller]
    pub fn gets_in(&self, place: Place) {
        let (verdict, said) = self.run(place);
        assert_eq!(verdict, Verdict::In, "it proves nothing: {said}");
    }

    #[track_caller]
    pub fn is_kept_out(&self, machine: &Machine) {
        self.is_kept_out_of(Place::Machine(machine));
    }

    #[track_caller]
    pub fn is_kept_out_of(&self, place: Place) {
        let (verdict, said) = self.run(place);
        assert_ne!(verdict, Verdict::In, "{said}");
    }

    #[track_caller]
    fn run(&self, place: Place) -> (Verdict, String) {
        let done = finish(&mut self.command(place), b"");
        let said = format!("{}\n{}{}", done.status, done.out(), done.err());
        (verdict(&done.out(), &said), said)
    }

    fn command(&self, place: Place) -> Command {
        // What it mounts is seen by nobody else, and goes with it.
        let words = ["--kill-after=1", LIMIT, "unshare", "--mount"];
        let mut command = match place {
            Place::Host => Command::new("timeout"),
            Place::Machine(machine) => machine.command(["timeout"]),
        };
        command
            .args(words)
            .args(self.interpreter)
            .arg(&self.script)
            .args(&self.arguments);
        command
    }

    /// Starts it; it says `on` when what it waits for may happen.
    #[track_caller]
    pub fn start(&self, place: Place) -> BackgroundCommand {
        BackgroundCommand::start_command(&mut self.command(place))
    }
}

/// Waits until a probe ends that was started in the background, and returns whether it got in.
#[track_caller]
pub fn got_in(probe: BackgroundCommand) -> bool {
    let done = probe.end();
    verdict(&done.out(), &done.describe()) == Verdict::In
}

#[track_caller]
fn verdict(said: &str, all: &str) -> Verdict {
    match said.lines().last().and_then(|line| line.split_once(':')) {
        Some(("got in", _)) => Verdict::In,
        Some(("kept out", _)) => Verdict::Out,
        Some(("not here", _)) => Verdict::Missing,
        _ => panic!("the probe can't run: {all}"),
    }
}
