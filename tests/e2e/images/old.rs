//! Images whose systemd is too old to boot in a machine.

use super::Name;

/// Makes an image of busybox and of a file in place of systemd, which contains `text` as printf(1)
/// prints it.
fn with_systemd(kind: &str, text: &str) -> Name {
    let name = Name::new(kind);
    name.sh(&format!(
        "mkdir -p $name/bin $name/usr/bin $name/lib/systemd; cp $(command -v busybox) $name/bin/busybox; \
         ln -s busybox $name/bin/sh; touch $name/usr/bin/dbus-daemon; \
         {{ head -c 1M /dev/zero; printf '{text}'; }} >$name/lib/systemd/systemd"
    ));
    name
}

#[test]
fn systemd_without_cgroup_v2_is_refused_before_the_boot_and_runs_with_stub() {
    for (version, text) in [
        (219, "\\0systemd 219\\0"),
        (
            229,
            "\\0systemd 229 running in %%ssystem mode. (%%s)\\0systemd 300\\0",
        ),
    ] {
        let name = with_systemd(&format!("old-{version}"), text);
        let words = format!("its systemd {version} needs cgroup v1");
        let error = name.expect_refused(&[], &words);
        assert!(error.contains("can't boot the image") && error.contains("--init=stub"));
        assert!(!error.contains("did not start"), "{error}");
        for init in ["--init=stub", "--init=none"] {
            name.machine(&[init]).sh("exit 7").expect(7);
        }
    }
}

#[test]
fn disk_image_with_an_old_systemd_is_refused() {
    let name = with_systemd("old-disk", "\\0systemd 219\\0");
    name.sh("mksquashfs $name $name.raw -comp lz4 -all-root -quiet -no-progress; rm -r $name");
    let error = name.expect_refused(&[], "its systemd 219 needs cgroup v1");
    assert!(error.contains("--init=stub"), "{error}");
}

#[test]
fn systemd_of_an_unknown_version_is_started() {
    for (kind, text) in [
        ("shared", "\\0libsystemd-shared-231.so\\0systemd 219\\0"),
        ("none", "systemd\\0"),
    ] {
        with_systemd(kind, text).expect_refused(&[], "did not start");
    }
}

/// Tests links that would lead out of the image, and a FIFO, which nobody writes to.
#[test]
fn version_is_read_from_regular_files_of_the_image_only() {
    let name = with_systemd("link", "\\0systemd 219\\0");
    name.sh("printf '\\0systemd 218\\0' >/run/$name; mv $name/lib/systemd/systemd $name/run");
    name.sh("mkdir $name/x; mv $name/run $name/x/systemd; ln -s /../x/systemd $name/lib/systemd/systemd");
    name.expect_refused(&[], "its systemd 219 needs");
    name.sh("ln -sf /run/$name $name/lib/systemd/systemd");
    name.expect_refused(&[], "has no systemd");
    name.sh("rm $name/lib/systemd/systemd /run/$name; mkfifo $name/lib/systemd/systemd");
    name.expect_refused(&[], "did not start");
}
