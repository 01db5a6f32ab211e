//! The filters of system calls: which calls machines have, and with which errors others fail.

use nspawn_tests::{Machine, call, image};

/// Returns the error of socket(2) for each family. Its type is invalid, so that the error is 22 if no
/// filter refuses the call.
fn socket_errors(machine: &Machine, families: &[u32]) -> Vec<i32> {
    let errors = |family: &u32| {
        let probe = format!("socket(my $socket, {family}, 0x800001, 0); exit $!");
        machine.run(["perl", "-e", &probe]).code()
    };
    families.iter().map(errors).collect()
}

#[test]
fn address_families_are_allowed_by_name() {
    let (key, alg, vsock) = (15, 38, 40);
    let families = [key, alg, vsock];
    assert_eq!(socket_errors(&Machine::new(), &families), [97, 97, 97]);
    for init in ["--init=systemd", "--init=stub", "--init=none"] {
        let options = [
            "--allow-address-family=AF_ALG",
            "--allow-address-family=AF_VSOCK",
        ];
        let machine = Machine::with(&[init, options[0], options[1]]);
        assert_eq!(socket_errors(&machine, &families), [97, 22, 22], "{init}");
    }
    call("nspawn-prepare", ["--allow-address-family=ALG", &image()])
        .expect_error(1, "\"ALG\" is no address family, such as AF_ALG");
}

#[test]
fn io_uring_is_allowed_by_name() {
    let number = nix::libc::SYS_io_uring_setup;
    // The parameters are at no address.
    let probe = format!("syscall({number}, 1, 0); exit $!");
    let error = |machine: &Machine| machine.run(["perl", "-e", &probe]).code();
    assert_eq!(error(&Machine::new()), 38);
    let machine = Machine::with(&["--system-call-filter=io_uring_setup"]);
    assert_eq!(error(&machine), 14);
}

/// Calls of Linux 5.2 to 6.18, which have the same number on all architectures, with arguments that
/// are invalid for most of them. Left out are io_uring_setup(2), clone3(2) because of its children,
/// quotactl_fd(2), which needs privileges, and memfd_secret(2), whose memory nothing can reclaim.
const NEW_CALLS: &str = r#"
for my $number (@ARGV, 424 .. 469) {
    next if grep { $number == $_ } 425, 435, 443, 447;
    syscall($number, -1, 0, 0, -1, 0, 0) < 0 && $! == 1 && print "$number ";
}
"#;

#[test]
fn libraries_do_not_get_unexpected_errors_from_new_system_calls() {
    let pkeys = [
        nix::libc::SYS_pkey_alloc,
        nix::libc::SYS_pkey_free,
        nix::libc::SYS_pkey_mprotect,
    ];
    let arguments = pkeys.map(|number| number.to_string());
    for options in [&["--init=stub"][..], &["--init=stub", "--nesting"]] {
        let machine = Machine::with(options);
        let words = ["perl", "-e", NEW_CALLS].map(str::to_owned);
        let done = machine.run(words.into_iter().chain(arguments.clone()));
        assert_eq!(done.expect(0).out(), "", "{options:?}");
    }
}

/// Locks a page of memory (mlock(2)), and all of the memory that is mapped later (mlockall(2)).
const LOCK_MEMORY: &str = r#"
my ($mlock, $mlockall) = @ARGV;
my $page = "x" x 8192;
my $address = unpack("J", pack("P", $page)) & ~4095;
syscall(0 + $mlock, $address, 4096) == 0 or die "mlock: $!\n";
syscall(0 + $mlockall, 2) == 0 or die "mlockall: $!\n";
"#;

#[test]
fn programs_can_lock_memory_within_their_limit() {
    let numbers = [nix::libc::SYS_mlock, nix::libc::SYS_mlockall].map(|number| number.to_string());
    let machine = Machine::with(&["--init=stub"]);
    for user in ["root", "daemon"] {
        let uid = format!("--uid={user}");
        let words = [&*uid, &machine.name, "perl", "-e", LOCK_MEMORY];
        call(
            "nspawn-run",
            words.into_iter().chain(numbers.iter().map(String::as_str)),
        )
        .expect(0);
    }
}

#[test]
fn keyrings_are_missing_without_nesting() {
    let add = format!(
        "syscall({}, my $type = 'user', my $name = 'x', my $key = 'y', 1, -2) < 0 and exit $!",
        nix::libc::SYS_add_key
    );
    let request = format!(
        "syscall({}, my $type = 'user', my $name = 'z', 0, 0); exit $!",
        nix::libc::SYS_request_key
    );
    let error = |machine: &Machine, probe: &str| machine.run(["perl", "-e", probe]).code();
    let machine = Machine::with(&["--init=stub"]);
    assert_eq!(error(&machine, &add), 38);
    let machine = Machine::with(&["--init=stub", "--nesting"]);
    assert_eq!((error(&machine, &add), error(&machine, &request)), (0, 38));
}

/// Watches a directory's files by fanotify(7), as users without privileges may (FAN_REPORT_FID).
const WATCH: &str = r#"
my ($init, $mark) = @ARGV;
my $fd = syscall(0 + $init, 0x200, 0);
$fd >= 0 or die "fanotify_init: $!\n";
syscall(0 + $mark, $fd, 1, 0x100, -100, my $path = "/tmp") == 0 or die "fanotify_mark: $!\n";
open(my $file, ">", "/tmp/new") or die;
open(my $events, "<&=", $fd) or die;
sysread($events, my $event, 4096) >= 24 or die "no event\n";
syscall(0 + $init, 4, 0) < 0 && $! == 1 or die "a listener that decides is allowed\n";
"#;

#[test]
fn files_can_be_watched_by_fanotify() {
    let numbers = [nix::libc::SYS_fanotify_init, nix::libc::SYS_fanotify_mark];
    let numbers = numbers.map(|number| number.to_string());
    for options in [
        ["--init=stub", "--layer=disk"],
        ["--init=none", "--layer=tmpfs"],
    ] {
        let machine = Machine::with(&options);
        let words = ["perl", "-e", WATCH].map(str::to_owned);
        machine
            .run(words.into_iter().chain(numbers.clone()))
            .expect(0);
    }
}
