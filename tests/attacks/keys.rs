//! The kernel's keyrings, which no container has of its own.

use nix::libc;
use nspawn_tests::Machine;

use crate::probe::{Place, Probe};
use crate::suite::{Control, Field, Suite, machine, name};

/// By its number; by its name in all keyrings there are by number; as something asked for.
const READ: &str = r#"
my ($keyctl, $request, $name, $serial) = @ARGV;
my ($type, $buffer) = ("user", "\0" x 256);
sub try {
    my ($how, $key) = @_;
    $why .= "$how: $! ";
    got_in $how if $key >= 0 && syscall($keyctl, 11, $key, $buffer, 256) > 0 && $buffer =~ /$name/;
}
try "its number", $serial + 0;
try "the keyring $_", syscall($keyctl, 10, $_, $type, $name, 0) for -1 .. -8, map { -$_ } 1 .. 8;
try "request_key", syscall($request, $type, $name, 0, 0);
if (open(my $list, "<", "/proc/keys")) {
    while (<$list>) { got_in "its name in /proc/keys" if /$name/ }
}
kept_out $why;
"#;

/// For all who know its number.
const EVERYBODY: u32 = 0x3f3f_3f3f;
/// As keys are made: for who has it in a keyring of its own.
const USUAL: u32 = 0x3f01_0000;

pub fn rows(suite: &mut Suite, field: &Field) {
    suite.row("reading a key of the host's root, which everybody may read", || key_stays(EVERYBODY, &field.machine));
    suite.row("reading a key of the host's root, in a machine for containers (--nesting)", || {
        key_stays(USUAL, &machine(&["--nesting"]))
    });
    let add = Probe::perl(ADD, &[&libc::SYS_add_key.to_string(), &libc::SYS_keyctl.to_string(), &name()]);
    suite.probe("leaving a key for the host and other machines", Control::Host, &add, field);
}

fn key_stays(permissions: u32, machine: &Machine) -> Control {
    let key = Key::new(permissions);
    let numbers = [libc::SYS_keyctl, libc::SYS_request_key].map(|number| number.to_string());
    let probe = Probe::perl(READ, &[&numbers[0], &numbers[1], &key.name, &key.serial.to_string()]);
    probe.gets_in(Place::Host);
    probe.is_kept_out(machine);
    Control::Host
}

/// In the keyring of root, whoever that is; and out of it again.
const ADD: &str = r#"
my ($add, $keyctl, $name) = @ARGV;
my ($type, $content) = ("user", "x");
my $key = syscall($add, $type, $name, $content, 1, -4);
kept_out "$!" if $key < 0;
syscall($keyctl, 9, $key, -4);
got_in "as key $key";
"#;

/// A key of the host's root, until it is dropped.
struct Key {
    name: String,
    serial: libc::c_long,
}

impl Key {
    fn new(permissions: u32) -> Self {
        let name = name();
        let text = std::ffi::CString::new(&*name).unwrap();
        let keyring = libc::KEY_SPEC_USER_KEYRING;
        let number = libc::SYS_add_key;
        // SAFETY: add_key(2) reads two strings that end with NUL, and as many bytes as it is told.
        let serial =
            unsafe { libc::syscall(number, c"user".as_ptr(), text.as_ptr(), text.as_ptr(), name.len(), keyring) };
        assert!(serial > 0, "{}", std::io::Error::last_os_error());
        control(libc::KEYCTL_SETPERM, serial, permissions.into());
        Self { name, serial }
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        control(libc::KEYCTL_UNLINK, self.serial, libc::KEY_SPEC_USER_KEYRING.into());
    }
}

fn control(operation: u32, key: libc::c_long, argument: libc::c_long) {
    // SAFETY: these operations of keyctl(2) take numbers.
    let done = unsafe { libc::syscall(libc::SYS_keyctl, operation, key, argument) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}
