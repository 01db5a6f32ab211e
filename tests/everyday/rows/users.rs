//! Users, and programs that change to another user.

use crate::row::{BOOTED, Row, row};

pub const PACKAGES: &str = "sudo passwd adduser login util-linux openssl systemd libpam-systemd dbus-user-session libnss-systemd";

pub fn rows() -> Vec<Row> {
    [accounts(), changes()].into_iter().flatten().collect()
}

fn accounts() -> Vec<Row> {
    vec![
        row("`useradd` and `userdel`", "useradd -m u1; su u1 -c 'touch ~/f; stat -c %U ~/f'; userdel -rf u1 2>/dev/null").prints("u1"),
        row("a user with UID 500000", "useradd -m -u 500000 u2 2>/dev/null; su u2 -c 'touch ~/f; stat -c %u ~/f'; userdel -rf u2 2>/dev/null")
            .prints("500000"),
        row("subordinate UIDs of a new user", "useradd -m u3; grep -c ^u3: /etc/subuid; userdel -rf u3 2>/dev/null").prints("1"),
        row("`adduser`", "adduser --disabled-password --gecos '' u4 >/dev/null; id -un u4; userdel -rf u4 2>/dev/null").prints("u4"),
        row("`chpasswd` and `passwd -S`", "useradd u5; echo u5:secret | chpasswd; passwd -S u5 | cut -d' ' -f2; userdel -f u5 2>/dev/null")
            .prints("P"),
        row("`sg` and `newgrp`", "as_ci sg users -c 'id -gn'").prints("users"),
        row("`gpasswd -a` and `usermod`", "groupadd g1; gpasswd -a ci g1 >/dev/null; as_ci id -Gn | grep -o g1; gpasswd -d ci g1 >/dev/null; groupdel g1")
            .prints("g1"),
        row(
            "users of a service with `DynamicUser=`",
            "systemd-run --quiet --wait --pipe -p DynamicUser=yes -p User=row id -un",
        )
        .only(BOOTED)
        .prints("row"),
    ]
}

fn changes() -> Vec<Row> {
    vec![
        row("`su`", "su ci -c 'id -un'").prints("ci"),
        row("a login by `su -`", "su - ci -c 'echo $HOME $PWD $USER'").prints("/home/ci /home/ci ci"),
        row("`sudo` without a password", "as_ci sudo id -u").prints("0"),
        row("`sudo -u` and `sudo -i`", "sudo -u ci id -un; sudo -i -u ci pwd").prints("ci\n/home/ci"),
        row("`sudo` with a password", r#"
             useradd -G sudo -p "$(openssl passwd -6 secret)" u6
             su u6 -c 'echo secret | sudo -S -p "" id -u'; userdel -f u6 2>/dev/null"#)
        .prints("0"),
        row("`sudo` before a name server could time out", "sudo true; as_ci timeout 4 sudo true"),
        row("`runuser`", "runuser -u ci -- id -un").prints("ci"),
        row("`setpriv`", "setpriv --reuid=65534 --regid=65534 --clear-groups id -u").prints("65534"),
        row("`setpriv --no-new-privs` keeps `sudo` from root", "(as_ci setpriv --no-new-privs sudo id -u 2>&1 || true) | grep -o 'no new privileges' | head -n 1")
            .prints("no new privileges"),
        row("limits of PAM", r#"
             echo 'ci soft nofile 512' >/etc/security/limits.d/row.conf
             su ci -c 'ulimit -n'; rm /etc/security/limits.d/row.conf"#)
        .prints("512"),
        row("`/etc/environment`", r#"
             cp -a /etc/environment . || touch none; echo ROW=x >>/etc/environment
             su - ci -c 'echo $ROW'; if test -e none; then rm /etc/environment; else cp -a environment /etc; fi"#)
        .prints("x"),
        row("the home directory of root", "echo $HOME; id -u").prints("/root\n0"),
    ]
}
