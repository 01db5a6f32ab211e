//! Files and their owners.

use crate::row::{Row, row};

pub const PACKAGES: &str = "acl attr libcap2-bin inotify-tools python3 e2fsprogs util-linux";

pub fn rows() -> Vec<Row> {
    [owners(), attributes(), names(), contents(), file_systems()]
        .into_iter()
        .flatten()
        .collect()
}

fn owners() -> Vec<Row> {
    vec![
        row("`chown 1000000`", "touch f; chown 1000000:1000000 f; stat -c %u:%g f").prints("1000000:1000000"),
        row(
            "`tar x` of an archive with UID 95607",
            "touch f; tar -cf a.tar --owner=95607 --group=95607 f; rm f; tar -xf a.tar; stat -c %u:%g f",
        )
        .prints("95607:95607"),
        row(
            "`chown -R` of a directory of the image",
            "cp -a /usr/share/doc/apt before; chown -R ci /usr/share/doc/apt
             stat -c %U /usr/share/doc/apt/copyright; chown -R root /usr/share/doc/apt",
        )
        .prints("ci"),
        row("a directory with the setgid bit", "mkdir d; chgrp ci d; chmod g+s d; touch d/f; stat -c %G d/f").prints("ci"),
        row("a program with the setuid bit", "cp /usr/bin/id .; chmod 4755 id; as_ci ./id -u").prints("0"),
    ]
}

fn attributes() -> Vec<Row> {
    vec![
        row(
            "ACLs by `setfacl`",
            "touch f; setfacl -m u:ci:rwx f; getfacl -cp f | grep user:ci",
        )
        .prints("user:ci:rwx"),
        row(
            "extended attributes of users",
            "touch f; setfattr -n user.a -v b f; getfattr --only-values -n user.a f",
        )
        .prints("b"),
        row(
            "extended attributes `trusted.*`",
            "touch f; setfattr -n trusted.a -v b f",
        )
        .fails(
            "Operation not permitted",
            "The kernel reserves them for root of the host.",
        )
        .podman_fails("Operation not permitted"),
        row(
            "capabilities of a program by `setcap`",
            "cp /bin/cat .; setcap cap_chown=ep cat; as_ci ./cat /proc/self/status | grep CapEff | cut -f2",
        )
        .prints("0000000000000001"),
        row("`chattr +i`", "touch f; chattr +i f")
            .fails(
                "Operation not permitted",
                "The kernel reserves it for root of the host.",
            )
            .podman_fails("Operation not permitted"),
        row(
            "a time of the year 2100",
            "touch -d 2100-01-01 f; stat -c %y f | cut -c1-4",
        )
        .prints("2100"),
    ]
}

fn names() -> Vec<Row> {
    vec![
        row(
            "rename(2) of a directory of the image, as by npm and rustup",
            r#"python3 -c 'import os; d = "/usr/share/doc/apt"; os.rename(d, d + "2"); os.rename(d + "2", d)'"#,
        )
        .podman_fails("Invalid cross-device link"),
        row("hard links", "touch f; ln f g; ln /usr/share/doc/apt/copyright h; stat -c %h f h | xargs").prints("2 2"),
        row("FIFOs", "mkfifo p; (echo x >p &); cat p").prints("x"),
        row("device nodes by `mknod`", "mknod c c 1 3").fails(
            "Operation not permitted",
            "The kernel refuses device nodes in user namespaces.",
        )
        .podman_fails("Operation not permitted"),
        row(
            "names of 255 bytes, and paths of 3000",
            "touch $(printf %0255d 0); d=$(printf %0200d 0); for i in {1..15}; do mkdir $d; cd $d; done; touch f; pwd | wc -c | xargs test 3000 -lt",
        ),
        row("names that differ by case", "touch a A; ls | wc -l").prints("2"),
        row("names in UTF-8", "touch 'ä ö 日本'; ls").prints("ä ö 日本"),
        row("20000 files in a directory", "seq 20000 | xargs touch; ls | wc -l").prints("20000"),
    ]
}

fn contents() -> Vec<Row> {
    vec![
        row(
            "a sparse file of 5 GiB",
            "echo end | dd of=f bs=1 seek=5G status=none; tail -c 4 f; test $(du -k f | cut -f1) -lt 1000",
        )
        .prints("end"),
        row("O_TMPFILE", r#"python3 -c '
import os
fd = os.open(".", os.O_TMPFILE | os.O_RDWR)
os.write(fd, b"x")
os.link(f"/proc/self/fd/{fd}", "f", src_dir_fd=os.open("/", 0), follow_symlinks=True)'
cat f"#)
        .prints("x"),
        row("O_DIRECT", "dd if=/dev/zero of=f bs=4096 count=4 oflag=direct status=none; stat -c %s f").prints("16384"),
        row(
            "`flock`",
            "touch f; flock f sh -c 'if flock --nonblock f true; then echo free; else echo locked; fi'",
        )
        .prints("locked"),
        row("locks of fcntl(2)", r#"python3 -c '
import fcntl, os
f = open("f", "w")
fcntl.lockf(f, fcntl.LOCK_EX)
if os.fork() == 0:
    try: fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError: print("locked")
else: os.wait()'"#)
        .prints("locked"),
        row(
            "inotify",
            "inotifywait -qq -t 20 -e create . & for i in {1..50}; do sleep 0.1; touch f$i; kill -0 $! 2>/dev/null || break; done; wait $!",
        ),
        row(
            "`fallocate` and holes",
            "fallocate -l 8M f; fallocate --punch-hole -o 0 -l 4M f; test $(du -k f | cut -f1) -lt 5000; stat -c %s f",
        )
        .prints("8388608"),
        row("a shared mmap(2)", r#"truncate -s 4096 f; python3 -c '
import mmap
f = open("f", "r+b")
with mmap.mmap(f.fileno(), 0) as m: m[:3] = b"abc"'
head -c 3 f"#)
        .prints("abc"),
        row(
            "copy_file_range(2)",
            r#"echo abc >f; python3 -c 'import os; os.copy_file_range(os.open("f", 0), os.open("g", os.O_CREAT | os.O_RDWR), 4)'; cat g"#,
        )
        .prints("abc"),
        row("`cp --reflink=always`", "echo x >f; cp --reflink=always f g").fails(
            "Operation not supported",
            "The layer is ext4, which has no reflinks. `--layer=snapshot` on a host with btrfs or xfs has them.",
        )
        .podman_fails("Operation not supported"),
        row("`sync`", "echo x >f; sync f; sync"),
    ]
}

fn file_systems() -> Vec<Row> {
    vec![
        row("`df` of the layer", "df --output=avail . | tail -n 1 | xargs test 1000000 -lt"),
        row("an overlay whose upper directory is in a tmpfs", "mkdir t m; mount -t tmpfs none t
             mkdir t/u t/w; mount -t overlay -o lowerdir=/etc/apt,upperdir=t/u,workdir=t/w none m
             echo x >m/f; cat t/u/f; umount m t")
        .prints("x")
        .podman_fails("permission denied"),
        row("an overlay whose upper directory is in the layer", "mkdir u w m; mount -t overlay -o lowerdir=/etc/apt,upperdir=u,workdir=w none m")
            .fails(
                "mount: ",
                "The kernel refuses an overlay as the upper layer of another. A tmpfs is one, and so is `/var/lib/containers` with `--nesting`.",
            )
            .podman_fails("permission denied"),
        row("an overlay whose upper directory is in `/var/lib/containers`", "cd /var/lib/containers; mkdir u w m
             mount -t overlay -o lowerdir=/etc/apt,upperdir=u,workdir=w none m; echo x >m/f; umount m; cat u/f; rm -r u w m")
        .prints("x")
        .with("--nesting"),
    ]
}
