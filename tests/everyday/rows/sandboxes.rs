//! Sandboxes, and programs of other architectures.

use crate::row::{Row, row};

pub const PACKAGES: &str = "bubblewrap gcc-multilib libc6-dev-i386 util-linux fakeroot python3";

pub fn rows() -> Vec<Row> {
    vec![
        row("`bwrap` as a user", "as_ci bwrap --ro-bind / / --dev /dev --proc /proc --unshare-all echo in")
            .prints("in")
            .remark("The page on [containers in machines](nesting.md) has podman, docker and others."),
        row("`bwrap` with a network of its own", "bwrap --ro-bind / / --dev /dev --unshare-net ip -br link | wc -l")
            .prints("1")
            .podman_fails("Operation not permitted"),
        row("`unshare` as another root with a mount", "as_ci unshare -rm sh -c 'mount -t tmpfs none /mnt && touch /mnt/f && ls /mnt'")
            .prints("f"),
        row("`fakeroot`", "as_ci fakeroot sh -c 'touch f; chown 5:6 f; stat -c %u:%g f'").prints("5:6"),
        row("a 32-bit program", "echo 'int main(void) { return sizeof(long); }' >a.c; gcc -m32 a.c -o a; ./a || echo $?").prints("4"),
        row("`linux32`", "setarch i386 uname -m").prints("i686"),
        row("a 32-bit program with a socket", r#"cat >a.c <<'END'
#include <stdio.h>
#include <sys/socket.h>
int main(void) { if (socket(AF_INET, SOCK_STREAM, 0) < 0) { perror("socket"); return 1; } puts("open"); }
END
gcc -m32 a.c -o a; ./a"#)
        .prints("open"),
    ]
}
