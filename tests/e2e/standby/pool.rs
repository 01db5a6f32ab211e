//! Size, refill and options of a pool.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::thread;
use std::time::Duration;

use nspawn_tests::{Machine, call, finish, image, left_of, sh, wait_until};

use super::{Pool, REFILL, origin};

/// Tests that a pool which is deleted with its image leaves no machine that was just being created.
#[test]
fn pool_deleted_during_a_refill_leaves_no_machine() {
    let pool = Pool::new("deleted", 0, &["--network=none"]);
    let mark = |name: &str| fs::read_to_string(format!("/run/nspawn-ci/{name}/standby"));
    let machines = || -> Vec<String> {
        let entries = fs::read_dir("/run/nspawn-ci").unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names
            .filter(|name| mark(name).is_ok_and(|mark| mark.ends_with(&pool.image)))
            .collect()
    };
    thread::scope(|scope| {
        let filling = scope.spawn(|| pool.resize(1));
        wait_until("a machine is being created", REFILL, || {
            !machines().is_empty()
        });
        pool.resize(0);
        fs::remove_file(format!("/var/lib/machines/{}", pool.image)).unwrap();
        filling.join().unwrap();
    });
    assert_eq!(machines(), [] as [String; 0]);
    // The pool is deleted by the name of its image.
    symlink(image(), format!("/var/lib/machines/{}", pool.image)).unwrap();
}

#[test]
fn refill_uses_the_variables_of_the_first_caller() {
    let tree = image();
    let image = format!("variable-{}", std::process::id());
    symlink(tree, format!("/var/lib/machines/{image}")).unwrap();
    let options = ["--network=none", "--init=stub", "--setenv=STANDBY_GIVEN"];
    let call = |more: &str| {
        let mut command = Command::new("nspawn-prepare");
        command
            .args(options)
            .args([more, &image])
            .env("STANDBY_GIVEN", "hello");
        finish(&mut command, b"").expect(0)
    };
    call("--standby=1");
    // The pool is deleted at the end, by a caller in another directory and with another value.
    let pool = Pool {
        image: image.clone(),
        options: options.to_vec(),
    };
    let machine = Machine {
        name: call("--verbose").out().trim_end().to_owned(),
    };
    assert!(origin(&machine).is_some());
    assert_eq!(
        machine.run(["printenv", "STANDBY_GIVEN"]).expect(0).out(),
        "hello\n"
    );
    pool.wait_for(1);
    let mut command = Command::new("nspawn-prepare");
    command
        .args(options)
        .args(["--standby=0", &image])
        .env("STANDBY_GIVEN", "other")
        .current_dir("/");
    finish(&mut command, b"").expect(0);
    assert_eq!(pool.names().len(), 0);
    std::mem::forget(pool);
    fs::remove_file(format!("/var/lib/machines/{image}")).unwrap();
}

#[test]
fn pool_has_the_size_of_the_last_request() {
    let pool = Pool::new("count", 3, &["--network=none", "--init=stub"]);
    assert_eq!(pool.names().len(), 3);
    pool.resize(1);
    assert_eq!(pool.names().len(), 1);
    pool.resize(2);
    assert_eq!(pool.names().len(), 2);
    let names = pool.names();
    pool.resize(0);
    assert_eq!(
        (
            pool.names().len(),
            names.iter().map(|name| left_of(name)).collect::<String>()
        ),
        (0, String::new())
    );
    // The pool is deleted. A refill would start a second after a machine is taken over.
    let recorded = sh("cat /run/nspawn-ci/.standby/*").out();
    assert!(!recorded.contains(&pool.image), "{recorded}");
    drop(pool.prepare(&[]));
    thread::sleep(Duration::from_secs(3));
    assert_eq!(pool.names().len(), 0);
}

#[test]
fn standby_machines_can_not_be_used_by_name() {
    let pool = Pool::new("unused", 1, &["--network=none", "--init=stub"]);
    let names = pool.names();
    call("nspawn-run", [&*names[0], "true"]).expect_error(125, "is on standby");
    call("nspawn-prepare", ["--name", &names[0], &image()])
        .expect_error(1, "the name is reserved for standby machines");
    assert_eq!(pool.names(), names);
    // Standby machines do not count for --max-machines.
    pool.prepare(&["--max-machines=1000"])
        .run(["true"])
        .expect(0);
}

#[test]
fn unsuitable_options_are_refused() {
    let refused = |options: &[&str], words: &str| {
        call("nspawn-prepare", [&["--standby=1"], options].concat()).expect_error(1, words);
    };
    let image = image();
    refused(&[], "no image is named");
    refused(&["--image", &image], "names of images");
    refused(
        &["--init=none", &image],
        "can't keep machines with --init=none on standby",
    );
    refused(
        &["--property=RuntimeMaxSec=1h", &image],
        "its time would pass before a caller takes over the machine",
    );
    refused(
        &["--name=x", &image],
        "the caller that takes over a machine names it",
    );
    refused(&["no-such-image"], "no image");
    call("nspawn-prepare", [&*image, &image]).expect_error(1, "only --standby takes several");
    assert!(
        fs::read_dir("/run/nspawn-ci/.standby").map_or(true, |pools| {
            pools
                .filter(|pool| {
                    fs::read_to_string(pool.as_ref().unwrap().path())
                        .unwrap()
                        .contains("RuntimeMaxSec")
                })
                .count()
                == 0
        })
    );
}
