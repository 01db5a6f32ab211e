//! The system: services, logs, packages, time, mounts.

use crate::row::{BOOTED, Row, row};

pub const PACKAGES: &str = "systemd dbus udev cron at kmod tzdata locales mount libpam-systemd util-linux \
    squashfuse squashfs-tools fuse3 fuse-overlayfs fuse2fs e2fsprogs netcat-openbsd bsdutils util-linux-extra";

pub fn rows() -> Vec<Row> {
    [
        services(),
        users(),
        logs(),
        packages(),
        time(),
        mounts(),
        fuse(),
        kernel(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn services() -> Vec<Row> {
    vec![
        row("`systemctl is-system-running`", "systemctl is-system-running").only(BOOTED).prints("running"),
        row("a unit of the job", "printf '[Service]\\nExecStart=/bin/sleep 60\\n' >/etc/systemd/system/row.service
             systemctl daemon-reload; systemctl start row; systemctl is-active row; systemctl stop row; rm /etc/systemd/system/row.service")
        .only(BOOTED)
        .prints("active"),
        row("`systemd-run --wait --pipe`", "systemd-run --quiet --collect --wait --pipe sh -c 'echo out; exit 3' || echo $?").only(BOOTED).prints("out\n3"),
        row("`systemd-run --scope`", "systemd-run --quiet --scope sh -c 'grep -o \"run-.*scope\" /proc/self/cgroup | cut -c1-4'").only(BOOTED).prints("run-"),
        row("a timer", "systemd-run --quiet --on-active=0.2 --timer-property=AccuracySec=10ms touch $PWD/f; wait_for test -e f").only(BOOTED),
        row("socket activation", "cd /run/systemd/system; printf '[Socket]\nListenStream=18101\nAccept=yes\n' >row.socket
             printf '[Service]\nExecStart=/bin/echo activated\nStandardOutput=socket\nStandardInput=socket\n' >row@.service
             systemctl daemon-reload; systemctl start row.socket; nc -d localhost 18101; systemctl stop row.socket; rm row.socket row@.service").only(BOOTED).prints("activated"),
        row("a path unit", "systemd-run --quiet --unit=rowpath --path-property=PathExists=$PWD/f touch $PWD/g; touch f; wait_for test -e g; systemctl stop rowpath.path").only(BOOTED),
        row("sandboxes of services", "systemd-run --quiet --wait --pipe -p PrivateTmp=yes -p ProtectSystem=strict -p PrivateDevices=yes -p ProtectHome=yes -p PrivateNetwork=yes -p ProtectKernelTunables=yes -p NoNewPrivileges=yes sh -c 'ls /tmp | wc -l; touch /usr/f 2>&1 | grep -o Read-only'").only(BOOTED).prints("0\nRead-only"),
        row("`systemd-tmpfiles` and `systemd-sysusers`", "echo \"d $PWD/d 0700 ci\" >t.conf; systemd-tmpfiles --create $PWD/t.conf; stat -c %U d; echo 'u rowuser - -' >u.conf; systemd-sysusers $PWD/u.conf >/dev/null 2>&1; id -un rowuser; userdel rowuser").prints("ci\nrowuser"),
        row("`hostnamectl`", "old=$(hostnamectl --static); hostnamectl set-hostname row; hostname; hostnamectl set-hostname ${old:-$(hostname)}").only(BOOTED).prints("row"),
        row("`at`", "systemctl start atd; echo \"touch $PWD/f\" | at now 2>/dev/null; wait_for test -e f").only(BOOTED),
        row("`crontab`", "echo '0 0 * * * true' | crontab -; crontab -l | wc -l; crontab -r").prints("1"),
        row("`@reboot` of cron", "wait_for test -e /run/reboot-of-cron").only(BOOTED),
        row("D-Bus of the system", "busctl call org.freedesktop.DBus / org.freedesktop.DBus GetId | cut -d' ' -f1").only(BOOTED).prints("s"),
        row("`dbus-run-session`", "dbus-run-session -- dbus-send --session --print-reply --dest=org.freedesktop.DBus / org.freedesktop.DBus.GetId 2>/dev/null | grep -c string").prints("1"),
        row("`udevadm settle`", "udevadm settle").only(BOOTED),
        row("`systemd-analyze verify`", "printf '[Service]\\nExecStart=/bin/true\\n' >row.service; systemd-analyze verify ./row.service").only(BOOTED),
    ]
}

fn users() -> Vec<Row> {
    // The manager of the user that ends would refuse the calls of the next row.
    vec![
        row("`loginctl`", "loginctl list-users --no-legend >/dev/null; loginctl enable-linger ci; wait_for test -S /run/user/$(id -u ci)/bus; loginctl user-status ci | grep -c Linger; end_linger").only(BOOTED).prints("1"),
        row("`systemctl --user`", "loginctl enable-linger ci; d=/run/user/$(id -u ci); wait_for as_ci env XDG_RUNTIME_DIR=$d systemctl --user is-active default.target
             as_ci env XDG_RUNTIME_DIR=$d systemd-run --user --quiet --wait --pipe id -un; end_linger").only(BOOTED).prints("ci"),
        row("`systemctl --user --machine`", "systemctl --user --machine=ci@ is-system-running --wait").only(BOOTED).prints("running"),
    ]
}

fn logs() -> Vec<Row> {
    vec![
        row("`logger` and `journalctl`", "logger -t row logged; journalctl --sync; journalctl -t row -o cat | tail -n 1").only(BOOTED).prints("logged"),
        row("`journalctl -u`", "systemd-run --quiet --wait --unit=rowlog echo written; journalctl --sync; journalctl -u rowlog -o cat | grep -x written").only(BOOTED).prints("written"),
        row("`systemd-cat`", "echo piped | systemd-cat -t rowcat; journalctl --sync; journalctl -t rowcat -o cat | tail -n 1").only(BOOTED).prints("piped"),
        row("`journalctl` as a user of the group adm", "usermod -aG adm ci; as_ci sg adm -c 'journalctl -n 1 -o cat' >/dev/null; gpasswd -d ci adm >/dev/null").only(BOOTED),
    ]
}

fn packages() -> Vec<Row> {
    vec![
        row("`apt install` of a file", "apt-get install -qq /opt/packages/hello_*.deb >/dev/null; hello -g hi; apt-get purge -qq hello >/dev/null").prints("hi"),
        row("`apt install` of a service, which starts", "apt-get install -qq /opt/packages/beanstalkd_*.deb >/dev/null 2>&1; systemctl is-active beanstalkd; apt-get purge -qq beanstalkd >/dev/null 2>&1").only(BOOTED).prints("active"),
        row("`apt update`", "apt-get update -qq; apt-cache policy hello | grep -c Candidate").prints("1"),
        row("`dpkg-reconfigure`", "dpkg-reconfigure tzdata 2>&1 | grep -c 'Universal Time is now'").prints("1"),
        row("`update-alternatives`", "update-alternatives --quiet --install /usr/bin/row row /bin/true 1; row; update-alternatives --quiet --remove row /bin/true"),
        row("`locale-gen`", "echo 'de_DE.UTF-8 UTF-8' >/etc/locale.gen; locale-gen >/dev/null; LC_ALL=de_DE.UTF-8 date -d 2026-03-01 +%B").prints("März"),
    ]
}

fn time() -> Vec<Row> {
    vec![
        row("the time zone UTC", "date +%Z").prints("UTC"),
        row("another time zone", "TZ=Asia/Tokyo date +%Z; ln -sf /usr/share/zoneinfo/Asia/Tokyo /etc/localtime; date +%Z; ln -sf /usr/share/zoneinfo/Etc/UTC /etc/localtime").prints("JST\nJST"),
        row("`date -s`", "date -s \"$(date)\"").fails("Operation not permitted", "The clock is that of the host. `faketime` and time namespaces work.").podman_fails("Operation not permitted"),
        row("`hwclock`", "hwclock").fails("Cannot access the Hardware Clock", "The clock is that of the host.").podman_fails("Cannot access the Hardware Clock"),
    ]
}

fn mounts() -> Vec<Row> {
    vec![
        row("`mount -t tmpfs`", "mkdir m; mount -t tmpfs none m; stat -fc %T m; umount m").prints("tmpfs").podman_fails("permission denied"),
        row("`mount --bind` and a read-only remount", "mkdir a b; mount --bind a b; mount -o remount,bind,ro b; (touch b/f 2>&1 || true) | grep -o Read-only; umount b").prints("Read-only").podman_fails("permission denied"),
        row("`mount -t proc`", "mkdir p; mount -t proc none p; test -e p/1; umount p").podman_fails("permission denied"),
        row("`mount -o loop`", "truncate -s 8M f; mkfs.ext4 -q f; mkdir m; mount -o loop f m").fails(
            "m: ",
            "The host uses the same loop devices. `fuse2fs`, `squashfuse`, `mkfs.ext4 -d` and `mtools` need none.",
        ).podman_fails("failed to setup loop device"),
        row("`mkfs.ext4 -d`", "mkdir d; echo x >d/f; truncate -s 8M i; mkfs.ext4 -q -d d i; debugfs -R 'cat f' i 2>/dev/null").prints("x"),
        row("`swapon`", "dd if=/dev/zero of=s bs=1M count=2 status=none; chmod 600 s; mkswap s >/dev/null; swapon s").fails("Operation not permitted", "Swap is that of the host.").podman_fails("Operation not permitted"),
        row("`mount -t debugfs`", "mount -t debugfs none .").fails("permission denied", "It shows the kernel of the host.").podman_fails("permission denied"),
    ]
}

fn fuse() -> Vec<Row> {
    vec![
        row("`squashfuse`, as AppImages use it", "mksquashfs /etc/apt i -quiet -no-progress >/dev/null; mkdir m; squashfuse i m; ls m | grep -x sources.list.d; fusermount3 -u m").with("--device=fuse").prints("sources.list.d"),
        row("`fuse-overlayfs` as a user", "as_ci mkdir u w m; as_ci fuse-overlayfs -o lowerdir=/etc/apt,upperdir=u,workdir=w m; as_ci touch m/f; ls u; fusermount3 -u m").with("--device=fuse").prints("f"),
        row("`fuse2fs`", "mkdir d m; echo x >d/f; truncate -s 8M i; mkfs.ext4 -q -d d i; fuse2fs -o ro i m >/dev/null 2>&1; cat m/f; fusermount3 -u m").with("--device=fuse").prints("x"),
    ]
}

fn kernel() -> Vec<Row> {
    vec![
        // KVM_GET_API_VERSION.
        row(
            "virtual machines by KVM",
            "python3 -c 'import fcntl; print(fcntl.ioctl(open(\"/dev/kvm\", \"r+b\", 0), 0xae00))'",
        )
        .with("--device=kvm")
        .if_host("test -c /dev/kvm")
        .prints("12"),
        // finit_module(2), without a file.
        row("`modprobe`", "call 313 -1 0 0")
            .fails(
                "Operation not permitted",
                "The kernel is that of the host, and so are its modules.",
            )
            .podman_fails("Operation not permitted"),
        row("`kexec`", "call 246 0 0 0 0")
            .fails("Operation not permitted", "The kernel is that of the host.")
            .podman_fails("Operation not permitted"),
    ]
}
