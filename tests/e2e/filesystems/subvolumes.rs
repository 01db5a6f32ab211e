//! Subvolumes of btrfs that a job creates.

use std::fs;

use nspawn_tests::{Machine, call, left_of, sh};

use super::FileSystem;

/// Shell functions that create a subvolume and make one read-only.
///
/// Images have no btrfs-progs, so these call the ioctls `BTRFS_IOC_SUBVOL_CREATE` and
/// `BTRFS_IOC_SUBVOL_SETFLAGS` (linux/btrfs.h).
const SUBVOLUMES: &str = "own_ioctl() { perl -e 'my ($place, $number, @values) = @ARGV; my $format = shift @values; \
    my $data = pack $format, @values; open D, \"<\", $place or die \"$place: $!\\n\"; \
    ioctl D, hex $number, $data or die \"@ARGV: $!\\n\"' \"$@\"; }\n\
    subvolume() { own_ioctl \"$1\" 5000940e 'q a4088' 0 \"$2\"; }\n\
    seal() { own_ioctl \"$1\" 4008941a Q 2; }\n";

/// Creates nested read-only subvolumes deeper than the longest path, step by step.
const DEEP: &str = "perl -e 'for (1 .. 25) { mkdir \"d\" x 200 or die; chdir \"d\" x 200 or die }; \
    exit(0 != system qw(sh -ec), $ARGV[0])' \"$FUNCTIONS\n\
    subvolume . deepest; subvolume deepest inner; touch deepest/inner/file; seal deepest/inner; seal deepest\"\n";

/// Tests nested and read-only subvolumes, and files with inode flags.
#[test]
fn subvolumes_made_by_a_job_are_removed() {
    let system = FileSystem::new("btrfs");
    let outside = format!("{}/outside", system.place());
    sh(&format!(
        "btrfs --quiet subvolume create {outside} && echo kept >{outside}/file"
    ))
    .expect(0);
    let mut refused = Vec::new();
    // An overlay has no subvolumes. The directory for nested containers is on the layer itself.
    for (init, layer, place) in [
        ("stub", "snapshot", "/root"),
        ("none", "snapshot", "/root"),
        ("stub", "disk", "/var/lib/containers"),
    ] {
        for users in ["pick", "no"] {
            let private_users = format!("--private-users={users}");
            let machine = system.cell(init, layer).machine(&[
                "--layer-size=infinity",
                "--nesting",
                &private_users,
            ]);
            make_subvolumes(&machine, place, users == "no", &outside);
            let done = call("nspawn-cleanup", [&machine.name]);
            if done.code() != 0 || !left_of(&machine.name).is_empty() {
                refused.push(format!(
                    "{init} {layer} {users}: {} {}",
                    done.describe(),
                    left_of(&machine.name)
                ));
            }
        }
    }
    assert_eq!(
        fs::read_to_string(format!("{outside}/file")).unwrap(),
        "kept\n"
    );
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}

fn make_subvolumes(machine: &Machine, place: &str, is_root: bool, outside: &str) {
    let script = format!(
        "set -e; cd {place}; subvolume . plain; subvolume plain nested; subvolume plain/nested deep\n\
         subvolume . sealed; subvolume sealed inner; mkdir sealed/directory; touch sealed/file sealed/inner/file\n\
         subvolume sealed/directory far; seal sealed/directory/far\n\
         {DEEP}ln -s {outside} plain/link; ln -s {outside}/file sealed/link; subvolume . 'of two words'; subvolume . --\n"
    );
    // Only root of the initial user namespace may set these flags.
    let flags = if is_root {
        format!(
            "{}\nmkdir fixed; touch fixed/file plain/file; flags 10 plain/file plain/nested fixed/file fixed sealed/inner\n",
            nspawn_tests::FLAGS
        )
    } else {
        String::new()
    };
    // In a snapshot, the root directory is itself a subvolume.
    let all = if place == "/root" { "seal /" } else { "" };
    machine
        .sh(&format!(
            "FUNCTIONS=$(cat <<'END'\n{SUBVOLUMES}END\n)\neval \"$FUNCTIONS\"\n{script}{flags}seal sealed/inner; seal sealed; {all}"
        ))
        .expect(0);
}
