//! Unusable images, and images that are removed.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;

use nspawn_tests::{Done, call, image, left_of, sh};

/// A directory in `/var/lib/machines`, which is deleted at the end of its test.
struct FakeImage(PathBuf);

impl FakeImage {
    fn new(kind: &str) -> Self {
        let path = PathBuf::from(format!(
            "/var/lib/machines/e2e-bad-{kind}-{}",
            std::process::id()
        ));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(self, path: &str) -> Self {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
        self
    }

    #[track_caller]
    fn expect_refused(&self, words: &str) {
        let prefix = format!("refused-{}", std::process::id());
        let name = self.0.file_name().unwrap();
        call(
            "nspawn-prepare",
            ["--name".as_ref(), OsStr::new(&prefix), name],
        )
        .expect_error(1, words);
        assert_eq!(left_of(&prefix), "");
    }
}

impl Drop for FakeImage {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0).or_else(|_| fs::remove_file(&self.0));
    }
}

#[test]
fn unusable_images_are_refused() {
    let list = call("nspawn-prepare", ["no-such-image"])
        .expect_error(1, "no image \"no-such-image\"")
        .err();
    assert!(list.contains(&image()), "{list}");
    for reference in ["../../etc", "/etc", "..", "a\nb", ""] {
        call("nspawn-prepare", ["--", reference]).expect_error(1, "no image");
    }
    call("nspawn-prepare", [] as [&str; 0]).expect_error(1, "no image is named");
    let empty = FakeImage::new("empty");
    empty.expect_refused("is not an OS tree");
    FakeImage::new("bare")
        .file("usr/bin/env")
        .expect_refused("has no systemd");
    let systemd = FakeImage::new("no-dbus").file("usr/lib/systemd/systemd");
    systemd.expect_refused("has no D-Bus daemon");
    let file = FakeImage::new("file");
    fs::remove_dir(&file.0).unwrap();
    fs::write(&file.0, "").unwrap();
    file.expect_refused("as an image: it must be a directory");
    // This image passes all checks and still can't boot.
    FakeImage::new("fake")
        .file("usr/lib/systemd/systemd")
        .file("usr/bin/dbus-daemon")
        .expect_refused("did not start");
}

#[test]
fn disk_image_is_refused_for_a_snapshot_and_if_corrupt() {
    let disk = FakeImage::new("disk");
    fs::remove_dir(&disk.0).unwrap();
    let file = FakeImage(disk.0.with_extension("raw"));
    fs::write(&file.0, "no file system").unwrap();
    let name = format!("disk-{}", std::process::id());
    let image = disk.0.file_name().unwrap();
    let prepare = |layer: &str| {
        call(
            "nspawn-prepare",
            ["--name".as_ref(), name.as_ref(), OsStr::new(layer), image],
        )
    };
    prepare("--layer=snapshot")
        .expect_error(1, "which --layer=snapshot can't copy; choose --layer=disk");
    let done = prepare("--layer=disk").expect_error(1, "did not start");
    done.expect_err("can't mount the disk image");
    assert_eq!(left_of(&name), "");
}

/// An image that can be moved away and back.
struct MovableImage {
    image: FakeImage,
    away: FakeImage,
}

impl MovableImage {
    fn new(kind: &str) -> Self {
        let image = FakeImage::new(kind)
            .file("usr/lib/systemd/systemd")
            .file("usr/bin/dbus-daemon");
        let away = FakeImage(image.0.with_extension("away"));
        Self { image, away }
    }

    fn name(&self) -> &str {
        self.image.0.file_name().unwrap().to_str().unwrap()
    }

    fn move_away(&self) -> String {
        format!("mv {} {}", self.image.0.display(), self.away.0.display())
    }

    fn move_back(&self) -> String {
        format!("mv {} {}", self.away.0.display(), self.image.0.display())
    }

    #[track_caller]
    fn expect_missing(&self, done: Done, code: i32) {
        let path = self.image.0.display().to_string();
        assert!(
            done.err().contains(&path) && done.err().contains("No such file"),
            "{}",
            done.describe()
        );
        done.expect_error(code, "did not start");
    }
}

/// Tests an image that is moved away after the checks and before it is mounted.
#[test]
fn image_removed_before_its_mount_is_reported() {
    let image = MovableImage::new("vanishing");
    let name = format!("vanishing-{}", std::process::id());
    let property = format!("--property=ExecStartPre=/bin/{}", image.move_away());
    for init in ["--init=systemd", "--init=stub"] {
        let arguments = ["--name", &name, init, &property, image.name()];
        let done = call("nspawn-prepare", arguments);
        sh(&image.move_back()).expect(0);
        image.expect_missing(done, 1);
        assert_eq!(left_of(&name), "");
    }
}

/// Tests a machine without an init, which mounts its image at each run.
#[test]
fn image_removed_before_a_run_is_reported() {
    let image = MovableImage::new("vanished");
    let name = format!("vanished-{}", std::process::id());
    call(
        "nspawn-prepare",
        ["--name", &name, "--init=none", image.name()],
    )
    .expect(0);
    sh(&image.move_away()).expect(0);
    for _ in 0..2 {
        image.expect_missing(call("nspawn-run", [&*name, "true"]), 125);
    }
    call("nspawn-cleanup", [&name]).expect(0);
    assert_eq!(left_of(&name), "");
}
