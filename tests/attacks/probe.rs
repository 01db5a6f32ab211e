//! Attacks as scripts, which print their result.

use std::process::Command;

use nspawn_tests::{BackgroundCommand, Machine, finish};

use crate::suite::{Control, Fixture};

/// Time limit for a script, in seconds.
const LIMIT: &str = "20";

/// Functions that shell scripts call, the first three of them at their end.
const SHELL: &str = r#"
end() { printf '%s\n' "$*" | tr '\n' ' '; exit 0; }
got_in() { end "got in: $*"; }
kept_out() { end "kept out: $*"; }
unsupported() { end "unsupported: $*"; }
# A missing tool must not look like a failed attack.
attempt() {
    why=$("$@" 2>&1 >/dev/null) && return
    code=$?
    [ $code -lt 126 ] || { echo "can't run: $*: $why"; exit $code; }
    return $code
}
"#;

/// The same functions for Perl. `verdict` judges the result of a system call.
const PERL: &str = r#"
$| = 1;
sub got_in { print "got in: @_\n"; exit }
sub kept_out { print "kept out: @_\n"; exit }
sub unsupported { print "unsupported: @_\n"; exit }
# The numbers are EPERM, EACCES and ENOSYS.
sub verdict { $_[0] >= 0 ? got_in "" : $! == 1 || $! == 13 ? kept_out "$!" : $! == 38 ? unsupported "$!" : got_in "as far as: $!" }
"#;

/// The place where a script runs, as root.
#[derive(Clone, Copy)]
pub enum Place<'a> {
    Host,
    Machine(&'a Machine),
}

impl Place<'_> {
    /// Returns a command that runs there.
    pub fn command(self, words: &[&str]) -> Command {
        match self {
            Place::Host => {
                let mut command = Command::new(words[0]);
                command.args(&words[1..]);
                command
            }
            Place::Machine(machine) => machine.command(words),
        }
    }
}

/// A script and its arguments.
pub struct Probe {
    interpreter: [&'static str; 2],
    script: String,
    arguments: Vec<String>,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    In,
    Out,
    /// The kernel lacks the feature.
    Missing,
}

impl Probe {
    /// Returns a shell script that ends with `got_in`, `kept_out` or `unsupported`.
    pub fn shell(script: &str, arguments: &[&str]) -> Self {
        Self::new(
            ["sh", "-c"],
            &[SHELL, script].concat(),
            &[&["probe"], arguments].concat(),
        )
    }

    /// Returns a Perl script that ends with one of these functions. Images have the package
    /// perl-base.
    pub fn perl(script: &str, arguments: &[&str]) -> Self {
        Self::new(["perl", "-e"], &[PERL, script].concat(), arguments)
    }

    /// Returns a system call with `arguments` in Perl's syntax. It gets in unless the kernel
    /// refuses it.
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

    /// Checks that the probe gets in at `control`. Returns the control that counts.
    #[track_caller]
    pub fn prove(&self, control: Control, fixture: &Fixture) -> Control {
        match fixture.place(control).map(|place| self.run(place)) {
            Some((Verdict::In, _)) => control,
            Some((Verdict::Out, output)) => {
                panic!("the attack fails at its control, so it proves nothing: {output}")
            }
            Some((Verdict::Missing, _)) | None => Control::Absent,
        }
    }

    /// Checks that the probe gets in, which proves that it works.
    #[track_caller]
    pub fn gets_in(&self, place: Place) {
        let (verdict, output) = self.run(place);
        assert_eq!(
            verdict,
            Verdict::In,
            "the attack fails at its control, so it proves nothing: {output}"
        );
    }

    /// Checks that the probe fails in a machine.
    #[track_caller]
    pub fn is_kept_out(&self, machine: &Machine) {
        self.is_kept_out_of(Place::Machine(machine));
    }

    /// Checks that the probe fails.
    #[track_caller]
    pub fn is_kept_out_of(&self, place: Place) {
        let (verdict, output) = self.run(place);
        assert_ne!(verdict, Verdict::In, "{output}");
    }

    #[track_caller]
    fn run(&self, place: Place) -> (Verdict, String) {
        let done = finish(&mut self.command(place), b"");
        let output = format!("{}\n{}{}", done.status, done.out(), done.err());
        (verdict(&done.out(), &output), output)
    }

    fn command(&self, place: Place) -> Command {
        // The mounts of a script are visible to it alone, and end with it.
        let words = ["--kill-after=1", LIMIT, "unshare", "--mount"];
        let mut command = place.command(&["timeout"]);
        command
            .args(words)
            .args(self.interpreter)
            .arg(&self.script)
            .args(&self.arguments);
        command
    }

    /// Starts a script, and waits until it prints `on`.
    #[track_caller]
    pub fn start(&self, place: Place) -> BackgroundCommand {
        BackgroundCommand::start_command(&mut self.command(place))
    }
}

/// Waits for the end of a script that was started in the background. Returns whether it got in.
#[track_caller]
pub fn got_in(script: BackgroundCommand) -> bool {
    let done = script.wait();
    verdict(&done.out(), &done.describe()) == Verdict::In
}

#[track_caller]
fn verdict(stdout: &str, output: &str) -> Verdict {
    match stdout.lines().last().and_then(|line| line.split_once(':')) {
        Some(("got in", _)) => Verdict::In,
        Some(("kept out", _)) => Verdict::Out,
        Some(("unsupported", _)) => Verdict::Missing,
        _ => panic!("the script has no result: {output}"),
    }
}
