//! Images of a few files: busybox with users and commands, and busybox as the only program.

#[cfg(target_arch = "x86_64")]
use std::{fs, os::unix::fs::PermissionsExt};

use nspawn_tests::call;
use nspawn_tests::gitlab_runner::{Job, Outcome, Runner};

use super::Name;

/// Makes an image of busybox, with users and a link for each command.
fn busybox(kind: &str) -> Name {
    let name = bare(kind);
    name.sh(
        "cd $name; mkdir -p etc tmp usr/bin home/ann; chown 1000:1000 home/ann; for command in $(bin/busybox --list); do test -e bin/$command || ln -s busybox bin/$command; done; \
         ln -s /bin/env usr/bin/env; printf 'root:x:0:0:root:/root:/bin/sh\\nann:x:1000:1000::/home/ann:/bin/sh\\n' >etc/passwd; \
         printf 'root:x:0:\\nann:x:1000:\\n' >etc/group",
    );
    name
}

/// Makes an image of two files: busybox and a link to it.
fn bare(kind: &str) -> Name {
    let name = Name::new(kind);
    name.sh("mkdir -p $name/bin; cp $(command -v busybox) $name/bin/busybox; ln -s busybox $name/bin/sh");
    name
}

fn disk(name: Name) -> Name {
    name.sh("mksquashfs $name $name.raw -comp lz4 -all-root -quiet -no-progress; rm -r $name");
    name
}

/// Returns a job whose commands are all in busybox.
fn job(name: &Name) -> Job {
    Job::new(&name.0)
        .stage("get_sources", &["echo source >file"])
        .script(&[
            "cat file",
            "pwd",
            "echo $0 | cut -c1-19",
            "ls /no-such-file 2>/dev/null || echo none",
            "exit 5",
        ])
        .after_script(&["echo after a $CI_JOB_STATUS"])
}

/// Layers to test. With `--init=none`, `--layer=none` keeps no files from stage to stage.
const LAYERS: [&str; 3] = ["--layer=disk", "--layer=tmpfs", "--layer=none"];

fn check_jobs(name: &Name) {
    for (init, layers) in [("--init=stub", &LAYERS[..]), ("--init=none", &LAYERS[..2])] {
        for layer in layers {
            let report = Runner::default()
                .prepare_args(&[init, layer])
                .run(&job(name));
            let report = report.expect(&Outcome::ScriptFailure(5));
            let script = report.stage("build_script").text();
            assert_eq!(
                script, "source\n/builds/group/project\n/run/nspawn-script-\nnone\n",
                "{init} {layer}"
            );
            assert_eq!(
                report.stage("after_script").text(),
                "after a failed\n",
                "{init} {layer}"
            );
        }
    }
}

#[test]
fn busybox_image_runs_jobs() {
    check_jobs(&busybox("busybox"));
}

#[test]
fn image_with_only_a_shell_runs_jobs() {
    check_jobs(&bare("bare"));
}

#[test]
fn disk_image_with_only_a_shell_runs_jobs() {
    let name = disk(bare("bare-disk"));
    check_jobs(&name);
    assert_eq!(name.loop_devices(), "");
}

#[test]
fn job_that_would_lose_its_sources_expect_refused() {
    let name = bare("forgetful");
    let runner = Runner::default().prepare_args(&["--init=none", "--layer=none"]);
    let report = runner.run(&job(&name)).expect_system_failure();
    report.expect_log("choose --layer=tmpfs");
}

#[test]
fn sh_replaces_a_missing_bash_but_no_other_interpreter() {
    let name = busybox("bash");
    let run = |text: &str| {
        let job = Job::new(&name.0).stage_file("build_script", text);
        Runner::default().prepare_args(&["--init=none"]).run(&job)
    };
    for first in ["#!/usr/bin/env bash", "#!/bin/bash"] {
        let report = run(&format!(
            "{first}\necho \"it is $(readlink /proc/$$/exe)\"\nexit 4\n"
        ));
        let report = report.expect(&Outcome::ScriptFailure(4));
        assert_eq!(report.stage("build_script").text(), "it is /bin/busybox\n");
    }
    let report = run("#!/usr/bin/env perl\necho too far\n");
    assert!(!report.log().contains("too far"), "{}", report.describe());
    let _ = report.expect(&Outcome::ScriptFailure(127));
}

#[test]
fn busybox_image_has_users_and_commands() {
    let name = busybox("users");
    let machine = name.machine(&["--init=stub"]);
    assert_eq!(
        machine
            .sh("id -un; echo $HOME $SHELL; ps | grep -q [n]spawn && echo ps")
            .expect(0)
            .out(),
        "root\n/root /bin/sh\nps\n"
    );
    let done = nspawn_tests::finish(
        std::process::Command::new("nspawn-run").args([
            "--uid=ann",
            &machine.name,
            "sh",
            "-c",
            "id -u; pwd",
        ]),
        b"",
    );
    assert_eq!(done.expect(0).out(), "1000\n/home/ann\n");
    machine
        .run(["no-such-command"])
        .expect_error(127, "no-such-command");
    let done = call(
        "nspawn-run",
        [
            "--image",
            &name.0,
            "sh",
            "-c",
            "touch /x 2>/dev/null || echo read-only; exit 6",
        ],
    );
    assert_eq!(done.expect(6).out(), "read-only\n");
}

#[test]
fn image_without_systemd_is_not_booted() {
    for name in [
        busybox("no-systemd"),
        bare("nothing"),
        disk(bare("no-disk")),
    ] {
        let error = name.expect_refused(&["--init=systemd"], "has no systemd");
        assert!(error.contains("--init=stub"), "{error}");
        let report = Job::new(&name.0)
            .script(&["true"])
            .run()
            .expect(&Outcome::ScriptFailure(1));
        report.expect_log("--init=stub");
    }
}

/// Returns a program for i386 that creates a socket of this family by socketcall(2), as Debian's
/// C library does. It exits with the socket's number, or with an error's.
#[cfg(target_arch = "x86_64")]
fn program_for_i386(family: u8) -> Vec<u8> {
    const ADDRESS: u32 = 0x0804_8000;
    let code = [
        0xb8, 102, 0, 0, 0, // mov eax, 102: socketcall
        0xbb, 1, 0, 0, 0, // mov ebx, 1: SYS_SOCKET
        0xb9, 0x74, 0x80, 0x04, 0x08, // mov ecx, the address of the arguments below
        0xcd, 0x80, // int 0x80
        0x89, 0xc3, // mov ebx, eax
        0x85, 0xc0, // test eax, eax
        0x79, 0x02, // jns over the next instruction
        0xf7, 0xdb, // neg ebx
        0xb8, 1, 0, 0, 0, // mov eax, 1: exit
        0xcd, 0x80, // int 0x80
        family, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, // family, SOCK_STREAM, 0
    ];
    let size = 84 + u32::try_from(code.len()).unwrap();
    // elf(5): a header of 52 bytes, a program header of 32 bytes
    let mut program = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x03\0\x01\0\0\0".to_vec();
    let words = |words: &[u32]| {
        words
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect::<Vec<_>>()
    };
    program.extend(words(&[ADDRESS + 84, 52, 0, 0, 32 << 16 | 52, 1, 0]));
    program.extend(words(&[1, 0, ADDRESS, ADDRESS, size, size, 5, 4096]));
    program.extend(code);
    program
}

#[cfg(target_arch = "x86_64")]
#[test]
fn programs_for_i386_create_sockets_in_images_with_their_linker() {
    let name = bare("i386");
    for (program, family) in [("inet", 2), ("alg", 38)] {
        let path = format!("{}/{program}", name.path(""));
        fs::write(&path, program_for_i386(family)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    name.sh("mkdir $name/lib; touch $name/lib/ld-linux.so.2");
    for init in ["--init=stub", "--init=none"] {
        let machine = name.machine(&[init]);
        let done = machine.run(["/inet"]);
        assert!((3..10).contains(&done.code()), "{}", done.describe());
        machine.run(["/alg"]).expect(97);
    }
    let allowed = name.machine(&["--init=stub", "--allow-address-family=AF_ALG"]);
    let host = call(&format!("{}/alg", name.path("")), [""; 0]);
    let done = allowed.run(["/alg"]);
    assert_eq!(done.code() < 90, host.code() < 90, "{}", done.describe());
    name.sh("rm $name/lib/ld-linux.so.2");
    name.machine(&["--init=stub"]).run(["/inet"]).expect(38);
}

/// Tests an image whose shell is for i386, with busybox for the host's architecture, which prints
/// what any program sees.
#[cfg(target_arch = "x86_64")]
#[test]
fn architecture_is_that_of_the_image_or_of_the_option() {
    let name = bare("personality");
    let check = |options: &[&str], expected: &str| {
        for init in ["--init=stub", "--init=none"] {
            let machine = name.machine(&[&[init], options].concat());
            let done = machine.run(["/bin/busybox", "uname", "-m"]).expect(0);
            assert_eq!(done.out().trim_end(), expected, "{init} {options:?}");
        }
    };
    check(&[], "x86_64");
    check(&["--personality=x86"], "i686");
    name.sh("rm $name/bin/sh");
    fs::write(format!("{}/bin/sh", name.path("")), program_for_i386(2)).unwrap();
    check(&[], "i686");
    check(&["--personality=x86-64"], "x86_64");
    name.expect_refused(&["--personality=arm64"], "use x86-64 or x86");
}
