//! A hostile job, which is root in its machine, does not change the host.

use std::fs;
use std::path::Path;

use nspawn_tests::{FLAGS, Machine, call, left_of, sh};

/// Tests that the machine can only overwrite its own copy of the agent's program.
///
/// The attack runs outside the agent's cgroup, since stopping the agent ends its commands.
#[test]
fn programs_of_the_host_stay_intact_when_the_machine_overwrites_its_copy() {
    let machine = Machine::new();
    let program = sh("command -v nspawn-run").expect(0).out();
    let before = fs::read(program.trim()).unwrap();
    let attack = "systemctl stop nspawn-agent\n\
                  cd /run/nspawn-ci && rm nspawn-run && echo evil >nspawn-run\n\
                  yes >units/nspawn-agent.service\n";
    fs::write("/var/tmp/e2e-attack", attack).unwrap();
    machine
        .command(["sh", "-c", "cat >/root/attack"])
        .stdin(fs::File::open("/var/tmp/e2e-attack").unwrap())
        .status()
        .unwrap();
    machine.run(["systemd-run", "--quiet", "--wait", "sh", "/root/attack"]);
    let copy = format!(
        "/proc/$(machinectl show --property=Leader --value {})/root/run/nspawn-ci/nspawn-run",
        machine.name
    );
    assert_eq!(
        sh(&format!("cat {copy}")).expect(0).out(),
        "evil\n",
        "the attack did not reach the machine's own copy"
    );
    assert!(fs::read(program.trim()).unwrap() == before);
    let state = sh(&format!("du -sk /run/nspawn-ci/{}", machine.name))
        .expect(0)
        .out();
    assert!(
        state
            .split_whitespace()
            .next()
            .unwrap()
            .parse::<u32>()
            .unwrap()
            < 100,
        "{state}"
    );
}

#[test]
fn cleanup_of_a_hostile_layer_deletes_nothing_outside() {
    let machine = Machine::with(&["--layer-size=infinity", "--private-users=no"]);
    let outside = Path::new("/var/tmp").join(format!("e2e-outside-{}", machine.name));
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "kept").unwrap();
    let link = outside.display();
    machine
        .sh(&format!(
            "{FLAGS}; cd /root || exit; \
             touch a b 'new\nline' -- '-rf'; mkdir deep; ln -s {link} link; ln -s {link}/file deep/link; \
             flags 10 a && flags 20 b && flags 10 deep . || exit; \
             mkdir /mnt/m && mount -t tmpfs none /mnt/m && touch /mnt/m/x"
        ))
        .expect(0);
    call("nspawn-cleanup", [&machine.name]).expect(0);
    assert_eq!(left_of(&machine.name), "");
    assert_eq!(fs::read_to_string(outside.join("file")).unwrap(), "kept");
    fs::remove_dir_all(outside).unwrap();
}
