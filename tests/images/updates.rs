//! Updates while jobs run, broken updates, and killed updates.

use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nspawn_tests::{Machine, call, random, sh};

use crate::lab::{BOOTS, Image, SMALL, expect_failure, script, times, write_script};

/// Writes one time stamp to two files. A version in which they differ is incomplete.
const STAMP: &str = "date +%s.%N >/etc/stamp; cp /etc/stamp /usr/lib/stamp";

#[test]
fn each_job_sees_one_complete_version_during_updates() {
    let stamp = script(STAMP);
    let image = Image::from_tar(
        "jobs",
        &BOOTS,
        &["--script", stamp.to_str().unwrap(), "--no-boot-test"],
    );
    let done = AtomicBool::new(false);
    let job = |init: &str| {
        let name = call("nspawn-prepare", [&format!("--init={init}"), &image.name])
            .expect(0)
            .out();
        let machine = Machine {
            name: name.trim_end().to_owned(),
        };
        let read = || {
            machine
                .sh("cat /etc/stamp; sleep 0.2; cat /usr/lib/stamp")
                .expect(0)
                .out()
        };
        let (first, second) = (read(), read());
        let stamps: Vec<_> = first.lines().chain(second.lines()).collect();
        assert!(
            stamps.len() == 4 && stamps.iter().all(|stamp| *stamp == stamps[0]),
            "{stamps:?}"
        );
        stamps[0].to_owned()
    };
    let (updates, versions) = thread::scope(|scope| {
        let updater = scope.spawn(|| {
            let mut count = 0;
            while !done.load(Ordering::Relaxed) || count == 0 {
                // An unused version is deleted at once.
                image
                    .run("update", &["--no-upgrade", "--no-boot-test", "--keep=0"])
                    .expect(0);
                count += 1;
            }
            count
        });
        let workers = ["systemd", "systemd", "stub", "none"];
        let workers =
            workers.map(|init| scope.spawn(move || (0..5).map(|_| job(init)).collect::<Vec<_>>()));
        let joined = workers.map(thread::ScopedJoinHandle::join);
        done.store(true, Ordering::Relaxed);
        let mut versions: Vec<_> = joined.into_iter().flat_map(Result::unwrap).collect();
        assert_eq!(versions.len(), 20);
        versions.sort();
        versions.dedup();
        (updater.join().unwrap(), versions.len())
    });
    println!("20 jobs saw {versions} versions of {updates}");
    assert!(versions > 1);
    image.run("prune", &[]).expect(0);
    assert_eq!(
        (image.versions().len(), image.leftovers()),
        (1, String::new())
    );
}

#[test]
fn killed_update_leaves_a_complete_image_and_prune_removes_the_rest() {
    let stamp = script(STAMP);
    let image = Image::from_tar("killed", &BOOTS, &["--script", stamp.to_str().unwrap()]);
    let started = Instant::now();
    image.run("update", &["--no-upgrade"]).expect(0);
    let whole = u64::try_from(started.elapsed().as_millis()).unwrap();
    let tries = times(5, 20);
    let moments = random(usize::try_from(4 * tries).unwrap(), whole);
    for (number, moment) in moments.chunks(4).enumerate() {
        let moment = Duration::from_millis(
            u64::from(u32::from_le_bytes(moment.try_into().unwrap())) % whole,
        );
        let before = (image.current(), image.read("etc/stamp"));
        let mut update = image
            .command("update", &["--no-upgrade"])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        thread::sleep(moment);
        update.kill().unwrap();
        update.wait().unwrap();
        // The current version is the previous or the next one, and it is complete.
        let after = (image.current(), image.read("etc/stamp"));
        assert_eq!(
            before.0 == after.0,
            before.1 == after.1,
            "{number}: {before:?}, {after:?}"
        );
        assert_eq!(after.1, image.read("usr/lib/stamp"));
        image.run("prune", &[]).expect(0);
        assert_eq!(image.leftovers(), "", "killed after {moment:?}");
        let versions = image.versions();
        assert!(
            versions.len() <= 2 && versions.contains(&after.0),
            "{versions:?}"
        );
    }
    println!("killed {tries} times within {whole} ms");
    let name = call("nspawn-prepare", [&image.name]).expect(0).out();
    let machine = Machine {
        name: name.trim_end().to_owned(),
    };
    machine.run(["cat", "/etc/stamp"]).expect(0);
    drop(machine);
    image.run("update", &["--no-upgrade"]).expect(0);
}

#[test]
fn update_ended_by_a_signal_leaves_nothing() {
    let slow = script("sleep $(cat /seconds 2>/dev/null || echo 0); echo 30 >/seconds");
    let image = Image::from_tar("ended", &SMALL, &["--script", slow.to_str().unwrap()]);
    for signal in ["TERM", "INT", "HUP"] {
        let mut update = image
            .command("update", &["--no-upgrade"])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let at_work = format!(
            "until pgrep -f '[.]{}[.]nspawn-.*/script'; do sleep 0.05; done",
            image.name
        );
        call("timeout", ["20", "sh", "-c", &at_work]).expect(0);
        sh(&format!("kill -{signal} {}", update.id())).expect(0);
        assert!(!update.wait().unwrap().success());
        assert_eq!(image.leftovers(), "", "{signal}");
    }
    assert_eq!(image.versions().len(), 1);
}

#[test]
fn broken_update_changes_nothing_and_names_the_cause() {
    let customization = script("echo fine");
    let image = Image::from_tar(
        "broken",
        &BOOTS,
        &["--script", customization.to_str().unwrap()],
    );
    let before = image.current();
    let unit = "printf '[Service]\\nType=oneshot\\nExecStart=/bin/false\\n' >/etc/systemd/system/bad.service; \
                mkdir -p /etc/systemd/system/multi-user.target.wants; \
                ln -sf ../bad.service /etc/systemd/system/multi-user.target.wants/bad.service";
    for (lines, words) in [
        ("echo 'words of mine'; exit 9", "its last lines"),
        (unit, "these units fail: bad.service"),
        (
            "rm /usr/lib/systemd/systemd",
            "the new version no longer has systemd",
        ),
        (
            "cp /bin/false /usr/lib/systemd/systemd",
            "the new version does not boot",
        ),
    ] {
        write_script(&customization, lines);
        let done = expect_failure(image.run("update", &["--no-upgrade"]), "is unchanged: ");
        assert!(done.err().contains(words), "{}", done.describe());
        assert_eq!(
            (image.current(), image.versions().len(), image.leftovers()),
            (before.clone(), 1, String::new())
        );
    }
    write_script(&customization, unit);
    let done = image
        .run("update", &["--no-upgrade", "--accept-degraded"])
        .expect(0);
    assert!(done.err().contains("bad.service"), "{}", done.describe());
    assert_ne!(image.current(), before);
}
