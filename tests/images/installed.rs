//! The installed program, its unit, and updates of all images.

use std::fs;
use std::path::Path;

use nspawn_tests::{call, sh};

use crate::lab::{Image, SMALL, scratch, script};

#[test]
fn installed_unit_updates_images() {
    let dir = scratch("installed");
    let dir = dir.to_str().unwrap();
    let install = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .join("scripts/install");
    sh(&format!(
        "DESTDIR={dir} PREFIX=/opt/ci {} --no-build",
        install.display()
    ))
    .expect(0);
    let count = script("echo x >>/count; cat /proc/1/comm >>/count");
    let image = Image::from_tar("unit", &SMALL, &["--script", count.to_str().unwrap()]);
    // The unit keeps its settings, but has another path and updates only the image of this test.
    let units = format!("{dir}/opt/ci/lib/systemd/system");
    let unit = fs::read_to_string(format!("{units}/nspawn-ci-update.service")).unwrap();
    assert!(
        unit.contains("ExecStart=/opt/ci/bin/nspawn-image update --all\n"),
        "{unit}"
    );
    let changed = unit
        .replace("/opt/ci/bin", &format!("{dir}/opt/ci/bin"))
        .replace("--all", &image.name);
    let name = format!("{}.service", image.name);
    fs::write(format!("/run/systemd/system/{name}"), changed).unwrap();
    let done = sh(&format!(
        "systemctl daemon-reload && systemctl start {name}"
    ));
    let journal = sh(&format!(
        "journalctl --sync; journalctl --no-pager --unit={name}"
    ))
    .out();
    fs::remove_file(format!("/run/systemd/system/{name}")).unwrap();
    sh("systemctl daemon-reload").expect(0);
    assert!(done.status.success(), "{}\n{journal}", done.describe());
    assert_eq!(
        (image.versions().len(), image.read("count").lines().count()),
        (2, 4)
    );
    assert_eq!(image.leftovers(), "");
    let timer = fs::read_to_string(format!("{units}/nspawn-ci-update.timer")).unwrap();
    assert!(timer.contains("RandomizedDelaySec="), "{timer}");
}

/// Runs in a mount namespace, because other tests have descriptions of images too.
#[test]
fn update_of_all_images_continues_after_a_failure() {
    let (good, bad) = (
        Image::from_tar("good", &SMALL, &[]),
        Image::from_tar("bad", &SMALL, &[]),
    );
    let failing = script("exit 1");
    let line = format!(
        "mount -t tmpfs none /etc/nspawn-ci && mkdir /etc/nspawn-ci/images && cd /etc/nspawn-ci/images && \
         echo '--from-tar /nowhere' >missing.image && echo '--script {}' >{}.image && touch {}.image && \
         exec nspawn-image update --all --no-upgrade",
        failing.display(),
        bad.name,
        good.name
    );
    let done = call("unshare", ["--mount", "sh", "-c", &line]).expect(1);
    let last = done.err().lines().last().unwrap().to_owned();
    assert!(
        last.contains(&format!("can't update {};", bad.name)),
        "{}",
        done.describe()
    );
    done.expect_err("missing has a description, but no version yet");
    assert_eq!((good.versions().len(), bad.versions().len()), (2, 1));
}
