//! The table of the page on containers and sandboxes in machines: each row runs in a machine with its
//! options.

use std::path::Path;

use nspawn_tests::{Machine, finish};

const PAGE: &str = "scripts/docs/nesting.md";

/// Installs the tools that the release has, and prepares a tiny image of a container, of busybox alone.
///
/// A part of the tools may be a package of its own: Debian 12 has no docker-cli.
/// The kernel of a test host may lack the controller for processes, which podman would set.
const PREPARE: &str = r#"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
packages=$(apt-cache madison "$@" 2>/dev/null | awk '{ print $1 }' | sort -u)
apt-get install -qq --no-install-recommends $packages >/tmp/install.log 2>&1 || { tail -n 50 /tmp/install.log; exit 1; }
useradd --create-home ci
loginctl enable-linger ci
grep ^ci:100000:65536 /etc/subuid
mkdir -p /etc/containers /tmp/tree/bin /tmp/context
printf '[containers]\npids_limit=0\n' >/etc/containers/containers.conf
if command -v busybox; then
    cp "$(command -v busybox)" /tmp/tree/bin
    for name in sh cat echo mkdir chmod; do ln -s busybox /tmp/tree/bin/$name; done
    tar -C /tmp/tree -cf /tmp/tree.tar .
fi
printf 'FROM tree\nRUN echo built >/built\nCMD cat /built\n' >/tmp/context/Dockerfile
printf 'services:\n  a:\n    image: tree\n    command: echo composed\n' >/tmp/context/compose.yaml
"#;

const CONTAINERS: [&str; 21] = [
    "podman",
    "buildah",
    "crun",
    "runc",
    "docker.io",
    "docker-cli",
    "docker-compose",
    "fuse-overlayfs",
    "slirp4netns",
    "passt",
    "uidmap",
    "busybox-static",
    "keyutils",
    "iptables",
    "nftables",
    "dbus-user-session",
    "netavark",
    "aardvark-dns",
    "catatonit",
    "flatpak",
    "flatpak-builder",
];

/// Variables of a session, of which podman asks the user's systemd for cgroups.
const SESSION: &str = "
    export XDG_RUNTIME_DIR=/run/user/$(id -u)
    export DBUS_SESSION_BUS_ADDRESS=unix:path=$XDG_RUNTIME_DIR/bus
";

const PODMAN: &str = "
    cd
    podman import -q /tmp/tree.tar tree
    podman --runtime crun run --rm tree echo run
    podman --runtime runc run --rm tree echo run
    podman build -q -t built /tmp/context
    podman run --rm built | grep built
";

const BUILDAH: &str = "
    cd
    container=$(buildah from scratch)
    buildah copy -q $container /tmp/tree
    buildah run $container /bin/echo run
    buildah commit -q $container committed
";

const DOCKER: &str = "
    systemctl start docker
    docker import /tmp/tree.tar tree
    docker run --rm tree echo run
    docker build -t built /tmp/context
    docker run --rm built | grep built
";

/// A runtime of busybox alone, and an application of a text alone.
const FLATPAK: &str = r#"
    cd
    arch=$(flatpak --default-arch)
    mkdir -p runtime/usr/bin runtime/files
    cp -a /tmp/tree/bin/. runtime/usr/bin
    name=org.example.Platform/$arch/1
    printf "[Runtime]\nname=org.example.Platform\nruntime=$name\nsdk=$name\n" >runtime/metadata
    flatpak build-export --runtime --disable-sandbox repository runtime 1
    flatpak --user remote-add --no-gpg-verify here repository
    flatpak --user install --assumeyes --noninteractive here org.example.Platform//1
    echo '{"id": "org.example.App", "command": "app",
        "runtime": "org.example.Platform", "runtime-version": "1", "sdk": "org.example.Platform",
        "build-options": {"strip": false, "no-debuginfo": true},
        "modules": [{"name": "app", "buildsystem": "simple",
            "build-commands": ["mkdir /app/bin; echo built >/app/bin/app; chmod 755 /app/bin/app"]}]}' >app.json
    flatpak-builder --user application app.json
    grep built application/files/bin/app
"#;

const DEBUG: &str = "
    strace -f true 2>&1 | grep exited
    gdb -batch -ex starti -ex bt /bin/true
";

const SQUASHFUSE: &str = "
    mksquashfs /etc/apt /tmp/apt.squashfs -quiet -no-progress
    mkdir /tmp/mounted
    squashfuse /tmp/apt.squashfs /tmp/mounted
    ls /tmp/mounted/sources.list* | grep sources
    fusermount -u /tmp/mounted || fusermount3 -u /tmp/mounted
";

const BWRAP: &str = "
    bwrap --ro-bind / / --dev /dev --proc /proc --unshare-all --unshare-user --disable-userns true
";

const UNSHARE: &str = "unshare --user --map-root-user --pid --fork --mount-proc true";

/// Runs scripts for rows of the page, as root or as another user.
fn check(options: &[&str], packages: &[&str], rows: &[(&str, &str, &str)]) {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(PAGE);
    let page = std::fs::read_to_string(page).unwrap();
    let machine = Machine::with(options);
    let words = [&["bash", "-es", "--"], packages].concat();
    finish(&mut machine.command(words), PREPARE.as_bytes()).expect(0);
    let named = options
        .first()
        .map_or_else(|| "none".to_owned(), |option| format!("`{option}`"));
    let mut failures = Vec::new();
    for (tool, user, script) in rows {
        let row = format!("| {tool} | {named} |");
        assert!(page.contains(&row), "{PAGE} has no row {row}");
        let script = format!("set -e\n{SESSION}{script}");
        let words = ["su", user, "--shell", "/bin/bash", "--command", &script];
        let done = machine.run(words);
        if !done.status.success() {
            failures.push(format!("{tool}: {}", done.describe()));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn containers_run_in_machines_with_nesting() {
    let rows = [
        (
            "`podman run` and `podman build` as root, by crun and by runc",
            "root",
            PODMAN,
        ),
        (
            "`podman run` and `podman build` as another user",
            "ci",
            PODMAN,
        ),
        (
            "`buildah run` and `buildah commit` as root",
            "root",
            BUILDAH,
        ),
        (
            "`buildah run` and `buildah commit` as another user",
            "ci",
            BUILDAH,
        ),
        ("`docker run` and `docker build`", "root", DOCKER),
        (
            "`docker compose up`",
            "root",
            "cd /tmp/context; { docker compose up || docker-compose up; } 2>&1 | grep composed",
        ),
        ("`flatpak-builder`", "ci", FLATPAK),
        (
            "`keyctl`",
            "root",
            "keyctl new_session && keyctl add user name value @s",
        ),
    ];
    check(&["--nesting"], &CONTAINERS, &rows);
}

#[test]
fn sandboxes_and_debuggers_run_in_any_machine() {
    let rows = [
        (
            "`bwrap --unshare-all --disable-userns`, as Flatpak uses it",
            "ci",
            BWRAP,
        ),
        (
            "`unshare --user`, the base of other sandboxes",
            "ci",
            UNSHARE,
        ),
        ("`strace` and `gdb`", "ci", DEBUG),
    ];
    check(&[], &["bubblewrap", "strace", "gdb"], &rows);
}

#[test]
fn fuse_file_systems_mount_in_machines_with_the_device() {
    let rows = [(
        "`squashfuse`, by which AppImages mount themselves",
        "ci",
        SQUASHFUSE,
    )];
    let packages = ["squashfuse", "squashfs-tools", "fuse3"];
    check(&["--device=fuse"], &packages, &rows);
}
