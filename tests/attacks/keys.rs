//! The kernel's keyrings, which have no namespace of their own.

use nix::libc;
use nspawn_tests::Machine;

use crate::probe::{Place, Probe};
use crate::suite::{Control, Fixture, Suite, machine, name};

/// Reads a key by its number, by its name in the special keyrings, by request_key(2), and in
/// /proc/keys.
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

/// Key permissions for everyone who knows the number.
const PUBLIC: u32 = 0x3f3f_3f3f;
/// Key permissions for the possessor and the owner.
const OWNER: u32 = 0x3f3f_0000;

/// Adds a key with the owner's permissions to root's keyring, and prints its number.
const ADD: &str = r#"
my ($add, $keyctl, $name) = @ARGV;
my $type = "user";
# The key goes to the process's keyring first, because root's keyring may not exist yet.
my $key = syscall($add, $type, $name, $name, length $name, -2);
syscall($keyctl, 5, $key, 0x3f3f0000) == 0 && syscall($keyctl, 8, $key, -4) == 0 or die "no key: $!";
print $key;
"#;

pub fn rows(suite: &mut Suite, fixture: &Fixture) {
    suite.row("a key of the host's root", || {
        host_key_is_hidden(OWNER, &fixture.attacker)
    });
    suite.row("a key of the host's root that all users may read", || {
        host_key_is_hidden(PUBLIC, &fixture.attacker)
    });
    suite.row(
        "a key of the host's root, from a machine with --nesting",
        || host_key_is_hidden(OWNER, &machine(&["--nesting"])),
    );
    suite.row(
        "a key of another machine's root, both with --nesting",
        || {
            let [owner, other] = [(); 2].map(|()| machine(&["--nesting"]));
            let (name, numbers) = (
                name(),
                [libc::SYS_add_key, libc::SYS_keyctl].map(|number| number.to_string()),
            );
            let serial = owner
                .run(["perl", "-e", ADD, &numbers[0], &numbers[1], &name])
                .expect(0)
                .out();
            let probe = read(&name, &serial);
            probe.gets_in(Place::Machine(&owner));
            probe.is_kept_out(&other);
            Control::Permitted
        },
    );
}

fn host_key_is_hidden(permissions: u32, machine: &Machine) -> Control {
    let key = Key::new(permissions);
    let probe = read(&key.name, &key.serial.to_string());
    probe.gets_in(Place::Host);
    probe.is_kept_out(machine);
    Control::Host
}

fn read(name: &str, serial: &str) -> Probe {
    let numbers = [libc::SYS_keyctl, libc::SYS_request_key].map(|number| number.to_string());
    Probe::perl(READ, &[&numbers[0], &numbers[1], name, serial])
}

/// A key of the host's root, which is removed when this is dropped.
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
        // SAFETY: add_key(2) reads two strings that end with NUL, and `name.len()` bytes of the
        // payload.
        let serial = unsafe {
            libc::syscall(
                number,
                c"user".as_ptr(),
                text.as_ptr(),
                text.as_ptr(),
                name.len(),
                keyring,
            )
        };
        assert!(serial > 0, "{}", std::io::Error::last_os_error());
        control(libc::KEYCTL_SETPERM, serial, permissions.into());
        Self { name, serial }
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        control(
            libc::KEYCTL_UNLINK,
            self.serial,
            libc::KEY_SPEC_USER_KEYRING.into(),
        );
    }
}

fn control(operation: u32, key: libc::c_long, argument: libc::c_long) {
    // SAFETY: these operations of keyctl(2) take numbers.
    let done = unsafe { libc::syscall(libc::SYS_keyctl, operation, key, argument) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}
