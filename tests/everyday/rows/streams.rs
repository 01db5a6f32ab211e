//! Streams, terminals and memory that processes share.

use crate::row::{Row, row};

pub const PACKAGES: &str =
    "expect tmux screen dialog less util-linux bsdutils python3 gcc libc6-dev";

pub fn rows() -> Vec<Row> {
    [streams(), terminals(), memory()]
        .into_iter()
        .flatten()
        .collect()
}

fn streams() -> Vec<Row> {
    vec![
        row("`</dev/null` is /dev/null", "test /dev/stdin -ef /dev/null || { echo 'it is another file'; exit 1; }")
        .podman_fails("another file"),
        row("`/dev/stdout` and `/dev/stderr` as another user", "as_ci sh -c 'echo out >/dev/stdout; echo err >/dev/stderr'").prints("out\nerr"),
        row("`tee /dev/stderr`", "echo x | tee /dev/stderr").prints("x\nx"),
        row("here-documents and process substitution", "cat <<<x; diff <(echo a) <(echo a); cat <(echo y)").prints("x\ny"),
        row("`/dev/fd` and `/proc/self/fd`", "exec 7<<<x; cat /dev/fd/7; ls -l /proc/self/fd | grep -c ' 7 '").prints("x\n1"),
        row("binary data in a pipe", "head -c 3M /dev/urandom >f; cat f | cat >g; cmp f g"),
        row("arguments of 1 MiB", "a=$(printf %01023d 0); /bin/echo $(for i in {1..1024}; do echo $a; done) | wc -c").prints("1048576"),
        row("`yes | head`", "(yes || true) | head -n 1").prints("y"),
        row("`/dev/null`, `/dev/zero`, `/dev/full` and `/dev/urandom`", "echo x >/dev/null; head -c 3 /dev/zero | od -An -tx1 | xargs; (echo x 2>&1 >/dev/full || true) | grep -o 'No space left'; head -c 9 /dev/urandom | wc -c").prints("00 00 00\nNo space left\n9"),
    ]
}

fn terminals() -> Vec<Row> {
    vec![
        row("no terminal by default", "tty || true").prints("not a tty"),
        row("`script`", "script -qec 'tty' /dev/null </dev/null | tr -d '\\r' | cut -d/ -f1-3").prints("/dev/pts"),
        row("`script` as another user", "as_ci script -qec 'test -t 1 && echo terminal' /dev/null | tr -d '\\r'").prints("terminal"),
        row("`expect`", "expect -c 'log_user 0; spawn sh -c {read x; echo got $x}; send \"a\\r\"; expect {got a} {puts yes} timeout {exit 1}'").prints("yes"),
        row("`tmux`", "unset TMUX; export TERM=xterm; tmux new-session -d 'echo tmux >f; sleep 1'; wait_for test -s f; cat f").prints("tmux"),
        row("`screen`", "TERM=xterm screen -dm sh -c 'echo screen >f'; wait_for test -s f; cat f").prints("screen"),
        row("`dialog` on a terminal", "TERM=xterm script -qec 'dialog --infobox hello 5 20' /dev/null | grep -c hello | xargs test 0 -lt"),
        row("`less` in a pipe", "echo x | less").prints("x"),
        row("a terminal of one's own in Python", r#"python3 -c '
import os, pty
pid, fd = pty.fork()
if pid == 0: os.execlp("tty", "tty")
print(os.read(fd, 8).decode())'"#).prints("/dev/pts"),
    ]
}

fn memory() -> Vec<Row> {
    vec![
        row("`/dev/shm`", "echo x >/dev/shm/row; cat /dev/shm/row; rm /dev/shm/row; stat -fc %T /dev/shm").prints("x\ntmpfs"),
        row("64 MiB in `/dev/shm`", "trap 'rm /dev/shm/row' EXIT; head -c 64M /dev/zero >/dev/shm/row; stat -c %s /dev/shm/row").prints("67108864")
        .podman_fails("No space left"),
        row("semaphores of POSIX", r#"python3 -c '
from multiprocessing import get_context
fork = get_context("fork")
s = fork.Semaphore(0)
p = fork.Process(target=s.release); p.start(); print(s.acquire(timeout=5)); p.join()'"#).prints("True"),
        row("IPC of System V", "m=$(ipcmk -M 4096 | grep -o '[0-9]*$'); s=$(ipcmk -S 1 | grep -o '[0-9]*$'); q=$(ipcmk -Q | grep -o '[0-9]*$'); ipcrm -m $m -s $s -q $q; echo $m$s$q | grep -c '^[0-9]*$'").prints("1"),
        row("message queues of POSIX", r#"cat >q.c <<'END'
#include <mqueue.h>
#include <fcntl.h>
#include <stdio.h>
int main(void) {
    char b[8192] = "";
    mqd_t q = mq_open("/row", O_CREAT | O_RDWR, 0600, 0);
    if (q < 0 || mq_send(q, "sent", 5, 0) || mq_receive(q, b, sizeof b, 0) < 0) { perror("mq"); return 1; }
    mq_unlink("/row");
    puts(b);
}
END
gcc q.c -o q -lrt; ./q"#).prints("sent"),
        row("memfd_create(2)", r#"python3 -c 'import os; fd = os.memfd_create("row"); os.write(fd, b"m"); print(open(f"/proc/self/fd/{fd}").read())'"#).prints("m"),
        row("a program in a memfd", r#"python3 -c '
import os
fd = os.memfd_create("row", 0); os.write(fd, open("/bin/echo", "rb").read())
os.execve(fd, ["echo", "ran"], {})'"#).prints("ran"),
        row("huge memory: 1 GiB without use", "python3 -c 'import mmap; print(len(mmap.mmap(-1, 1 << 30)))'").prints("1073741824"),
    ]
}
