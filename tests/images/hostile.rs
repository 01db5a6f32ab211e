//! Trees with links to the host. nspawn-image writes and deletes nothing through them.

use std::fs;

use nspawn_tests::sh;

use crate::lab::{BOOTS, Image, SMALL, scratch, script};

/// Returns commands that replace each path that nspawn-image changes in a tree by a link to
/// `victim`.
fn plant(victim: &str) -> String {
    let links = [
        "etc/resolv.conf file",
        "etc/machine-id file",
        "etc/hostname file",
        "etc/.updated file",
        "var/.updated file",
        "etc/ssh dir",
        "etc/systemd dir",
        "etc/dpkg dir",
        "var/lib dir",
        "var/log dir",
        "var/cache dir",
        "usr/share dir",
        "usr/sbin dir",
        "root dir",
        "run dir",
        "tmp dir",
        "var/tmp dir",
    ];
    let link = |entry: &str| {
        let (path, target) = entry.split_once(' ').unwrap();
        format!("mkdir -p $(dirname {path}); rm -rf {path}; ln -s {victim}/{target} {path}; ")
    };
    links.map(link).concat()
}

/// Checks that the image has one of the links, which nspawn-image does not replace.
#[track_caller]
fn expect_planted(image: &Image, victim: &str) {
    let link = fs::read_link(image.file("var/lib")).unwrap();
    assert_eq!(link.to_str().unwrap(), format!("{victim}/dir"));
}

/// Creates a directory of the host with the files that such links lead to. Returns its path, and a
/// function that describes its state.
fn victim() -> (String, impl Fn() -> String) {
    let dir = scratch("victim");
    let line = format!(
        "mkdir -p {0}/dir && cd {0} && echo precious >file && cd dir && \
         for file in hostname resolv.conf machine-id policy-rc.d ssh_host_x_key random-seed bootstrap.log .updated \
             dpkg/status doc/x/README man/y locale/z apt/lists/x cache.bin systemd/credential.secret apt/x.log \
             dpkg.cfg.d/x system/multi-user.target.wants/apt-daily.timer system/timers.target.wants/fstrim.timer; do \
             mkdir -p $(dirname $file) && echo precious >$file; done",
        dir.display()
    );
    sh(&line).expect(0);
    let look = format!(
        "cd {} && find . -printf '%p %s %m %T@ %l\\n' | sort; cat file",
        dir.display()
    );
    (dir.to_str().unwrap().to_owned(), move || {
        sh(&look).expect(0).out()
    })
}

#[test]
fn links_out_of_a_tree_are_not_followed() {
    let (victim, describe) = victim();
    let (tree, tar) = (scratch("hostile"), scratch("hostile.tar"));
    let line = format!(
        "set -e; mkdir {0}; tar -C {0} -xf {1}; cd {0}; {2} tar -cf {3} .",
        tree.display(),
        SMALL.display(),
        plant(&victim),
        tar.display()
    );
    sh(&line).expect(0);
    let before = describe();
    let image = Image::from_tar("links", &tar, &["--minimal", "--no-boot-test"]);
    assert_eq!(describe(), before);
    image.run("update", &["--no-upgrade"]).expect(0);
    assert_eq!(describe(), before);
    assert!(
        image
            .file("etc/resolv.conf")
            .symlink_metadata()
            .unwrap()
            .is_file()
    );
    expect_planted(&image, &victim);
    image.run("remove", &[]).expect(0);
    assert_eq!(describe(), before);
}

#[test]
fn links_from_a_customization_are_not_followed() {
    let (victim, describe) = victim();
    let before = describe();
    // The tree has systemd, so that the steps for systemd run too.
    let evil = script(&format!(
        "set +e; cd /; umount -l /run /tmp; {} true",
        plant(&victim)
    ));
    let options = [
        "--minimal",
        "--no-boot-test",
        "--script",
        evil.to_str().unwrap(),
    ];
    let image = Image::named("evil");
    let from = ["--from-tar", BOOTS.to_str().unwrap()];
    let done = image.run("create", &[&from[..], &options].concat());
    assert_eq!(describe(), before, "{}", done.describe());
    expect_planted(&image, &victim);
    assert_eq!(image.leftovers(), "");
}

#[test]
fn tar_file_writes_nothing_outside_of_its_tree() {
    let (victim, describe) = victim();
    let before = describe();
    let tar = scratch("outside.tar");
    let make = format!(
        "import tarfile, io\n\
         t = tarfile.open('{}', 'w')\n\
         def add(name, kind=tarfile.REGTYPE, link=''):\n\
         \x20   i = tarfile.TarInfo(name); i.type = kind; i.linkname = link; i.size = 4 if kind == tarfile.REGTYPE else 0\n\
         \x20   t.addfile(i, io.BytesIO(b'evil'))\n\
         add('usr', tarfile.DIRTYPE); add('out', tarfile.SYMTYPE, '{victim}'); add('out/file')\n\
         add('{victim}/file'); add('../../../../../..{victim}/file'); add('hard', tarfile.LNKTYPE, '{victim}/file')\n\
         add('hard')\n\
         t.close()\n",
        tar.display()
    );
    nspawn_tests::finish(
        std::process::Command::new("python3").arg("-"),
        make.as_bytes(),
    )
    .expect(0);
    let image = Image::named("outside");
    let done = image.run("create", &["--from-tar", tar.to_str().unwrap()]);
    assert_eq!(describe(), before, "{}", done.describe());
    assert_eq!(image.leftovers(), "");
}

#[test]
fn device_nodes_of_a_tar_file_and_of_a_container_image_are_removed() {
    let (tree, tar) = (scratch("nodes"), scratch("nodes.tar"));
    let (layout, bundle) = (scratch("nodes-oci"), scratch("nodes-bundle"));
    let line = format!(
        "set -e; mkdir {0}; tar -C {0} -xf {1}; mkdir -p {0}/dev {0}/opt; mknod -m 666 {0}/dev/null c 1 3; \
         mknod -m 666 {0}/opt/disk b 7 0; mkfifo {0}/opt/fifo; tar -C {0} -cf {2} .; \
         umoci init --layout {3}; umoci new --image {3}:x; umoci unpack --image {3}:x {4}; \
         tar -C {4}/rootfs -xf {2}; umoci repack --image {3}:x {4}",
        tree.display(),
        SMALL.display(),
        tar.display(),
        layout.display(),
        bundle.display()
    );
    sh(&line).expect(0);
    let oci = format!("oci:{}:x", layout.display());
    for (name, source) in [
        ("nodes-tar", ["--from-tar", tar.to_str().unwrap()]),
        ("nodes-oci", ["--from-oci", &oci]),
    ] {
        let image = Image::named(name);
        image.run("create", &source).expect(0);
        let find = |kind: &str| {
            sh(&format!("find {}/ -type {kind}", image.file(".").display()))
                .expect(0)
                .out()
        };
        assert_eq!(find("b") + &find("c"), "", "{name}");
        assert!(find("p").ends_with("/opt/fifo\n"), "{name}");
    }
}
