//! Databases and servers.

use crate::row::{BOOTED, Row, row};

pub const PACKAGES: &str = "postgresql mariadb-server redis-server nginx apache2 memcached openssh-server openssh-client \
    sqlite3 rsync haproxy curl netcat-openbsd";

pub fn rows() -> Vec<Row> {
    vec![
        row("PostgreSQL as a user", "chown postgres .; b=$(echo /usr/lib/postgresql/*/bin); d=$PWD
             pg() { runuser -u postgres -- \"$@\"; }
             pg $b/initdb -A trust -D $d/db >/dev/null; pg $b/pg_ctl -w -o \"-k $d -p 18301\" -l $d/log -D $d/db start >/dev/null
             psql -h $d -p 18301 -U postgres -Atc 'select 6 * 7'; pg $b/pg_ctl -m immediate -D $d/db stop >/dev/null").prints("42"),
        row("PostgreSQL as a service", "systemctl start postgresql; wait_for runuser -u postgres -- psql -c 'select 1'; runuser -u postgres -- psql -Atc 'select 6 * 7'; systemctl stop postgresql").only(BOOTED).prints("42"),
        row("MariaDB", "chown mysql .; mariadb-install-db --user=mysql --datadir=$PWD/db >/dev/null 2>&1
             mariadbd --no-defaults --user=mysql --datadir=$PWD/db --socket=$PWD/s --skip-networking >log 2>&1 & wait_for mariadb -S $PWD/s -e 'select 1'
             mariadb -S $PWD/s -Ne 'select 6 * 7'; mariadb-admin -S $PWD/s shutdown").prints("42"),
        row("Redis", "redis-server --port 18302 --save '' >log & wait_port 18302; redis-cli -p 18302 set k v; redis-cli -p 18302 get k").prints("OK\nv"),
        row("Redis as a service", "systemctl start redis-server; redis-cli ping; systemctl stop redis-server").only(BOOTED).prints("PONG"),
        row("nginx", "mkdir w; echo page >w/index.html; printf \"pid $PWD/pid; error_log stderr; events {} http { access_log off; server { listen 18303; root $PWD/w; } }\" >c
             chmod 755 .; nginx -c $PWD/c 2>/dev/null; wait_port 18303; curl -s localhost:18303; nginx -c $PWD/c -s stop 2>/dev/null").prints("page"),
        row("nginx as a service", "systemctl start nginx; curl -sI localhost | grep -o '^Server: nginx'; systemctl stop nginx").only(BOOTED).prints("Server: nginx"),
        row("Apache", "mkdir w; echo page >w/index.html; m=/usr/lib/apache2/modules
             printf \"PidFile $PWD/pid\\nListen 18304\\nErrorLog $PWD/log\\nDocumentRoot $PWD/w\\nServerName localhost\\n\" >c
             printf \"LoadModule mpm_event_module $m/mod_mpm_event.so\\nLoadModule authz_core_module $m/mod_authz_core.so\\n\" >>c
             apache2 -f $PWD/c; wait_port 18304; curl -s localhost:18304/index.html; apache2 -f $PWD/c -k stop").prints("page"),
        row("memcached", "as_ci memcached -p 18305 & wait_port 18305; printf 'set k 0 0 1\\r\\nv\\r\\nget k\\r\\nquit\\r\\n' | nc localhost 18305 | tr -d '\\r' | sed -n 3p").prints("v"),
        row("`ssh localhost`", "mkdir -p /run/sshd; ssh-keygen -A >/dev/null; ssh-keygen -qt ed25519 -N '' -f k; mkdir -p ~/.ssh; cp k.pub ~/.ssh/authorized_keys; chmod 700 ~/.ssh
             /usr/sbin/sshd -D -p 18306 & wait_port 18306; ssh -i k -p 18306 -o StrictHostKeyChecking=no -o LogLevel=ERROR localhost 'echo remote'").prints("remote"),
        row("`rsync` by its daemon", "mkdir m; echo x >m/f; printf \"use chroot = no\\n[m]\\npath = $PWD/m\\n\" >c; rsync --daemon --no-detach --port=18307 --config=c & wait_port 18307; rsync -a rsync://localhost:18307/m/ o; cat o/f").prints("x"),
        row("HAProxy", "python3 -m http.server 18308 --bind 127.0.0.1 >/dev/null 2>&1 & printf 'defaults\\n mode tcp\\n timeout connect 5s\\n timeout client 5s\\n timeout server 5s\\nlisten l\\n bind 127.0.0.1:18309\\n server s 127.0.0.1:18308\\n' >c
             wait_port 18308; haproxy -f c >log 2>&1 & wait_port 18309; curl -s -o /dev/null -w '%{http_code}' localhost:18309").prints("200"),
        row("SQLite with its write-ahead log", "sqlite3 d 'pragma journal_mode=wal; create table t(x); insert into t values(42); select x from t;'").prints("wal\n42"),
    ]
}
