//! Compilers, interpreters and version control.

use crate::row::{Row, row};

pub const PACKAGES: &str = "gcc g++ libc6-dev make cmake valgrind autoconf automake python3-venv python3-pip python3-setuptools python3-wheel \
    nodejs perl ruby php-cli default-jdk-headless cargo lua5.4 zsh fish gawk jq git git-lfs subversion mercurial ninja-build meson ccache";

pub fn rows() -> Vec<Row> {
    [compilers(), interpreters(), versions()]
        .into_iter()
        .flatten()
        .collect()
}

/// A program whose error the sanitizer named in `$1` finds.
macro_rules! sanitizer {
    ($flag:literal, $body:literal, $word:literal) => {
        concat!(
            "cat >a.cc <<'END'\n#include <thread>\n#include <cstdlib>\n#include <unistd.h>\n",
            $body,
            "\nEND\ng++ -g -fsanitize=",
            $flag,
            " a.cc -o a; ./a >o 2>&1 || true; grep -o -m 1 '",
            $word,
            "' o"
        )
    };
}

fn compilers() -> Vec<Row> {
    vec![
        row("`gcc`", "echo 'int main(void) { return 3; }' >a.c; gcc a.c -o a; ./a || echo $?").prints("3"),
        row("`g++` with threads", "echo '#include <thread>\n#include <cstdio>\nint main() { std::thread([] { puts(\"t\"); }).join(); }' >a.cc; g++ -pthread a.cc -o a; ./a").prints("t"),
        row("AddressSanitizer", sanitizer!("address", "int main(int c, char**) { char *p = (char *)malloc(4); free(p); return p[c]; }", "heap-use-after-free")).prints("heap-use-after-free"),
        row("LeakSanitizer", sanitizer!("leak", "int main() { void * volatile p = malloc(7); p = 0; return 0; }", "detected memory leaks")).prints("detected memory leaks"),
        // It may miss accesses at the very same time.
        row("ThreadSanitizer", sanitizer!("thread", "int x; int main() { std::thread t([] { x++; }); usleep(100000); x++; t.join(); }", "data race")).prints("data race"),
        row("UndefinedBehaviorSanitizer", sanitizer!("undefined", "int main(int c, char**) { return 2147483647 + c; }", "signed integer overflow")).prints("signed integer overflow"),
        row("`valgrind`", "echo 'int main(void) { return 0; }' >a.c; gcc a.c -o a; valgrind ./a 2>&1 | grep -o '0 errors from 0'").prints("0 errors from 0"),
        row("`make -j`", "printf 'all: a b\\na b:\\n\\ttouch $@\\n' >Makefile; make -s -j4; ls a b | xargs").prints("a b"),
        row("`cmake` with `ninja`", "echo 'int main(void) { return 0; }' >a.c; printf 'cmake_minimum_required(VERSION 3.13)\\nproject(a C)\\nadd_executable(a a.c)\\nenable_testing()\\nadd_test(NAME a COMMAND a)\\n' >CMakeLists.txt
             cmake -GNinja -B b >/dev/null; cmake --build b >/dev/null; ctest --test-dir b | grep -o '100% tests passed'").prints("100% tests passed"),
        row("`meson`", "echo 'int main(void) { return 0; }' >a.c; printf \"project('a', 'c')\\ntest('a', executable('a', 'a.c'))\\n\" >meson.build; meson setup b >/dev/null; meson test -C b | grep -c '^Ok: *1'").prints("1"),
        row("`autoconf` and `make dist`", "echo 'int main(void) { return 0; }' >a.c; printf 'AC_INIT(a, 1)\\nAM_INIT_AUTOMAKE([foreign])\\nAC_PROG_CC\\nAC_CONFIG_FILES([Makefile])\\nAC_OUTPUT\\n' >configure.ac
             printf 'bin_PROGRAMS = a\\na_SOURCES = a.c\\n' >Makefile.am; autoreconf -i >/dev/null 2>&1; ./configure >/dev/null; make -s dist; ls *.tar.gz").prints("a-1.tar.gz"),
        row("`ccache`", "export CCACHE_DIR=$PWD/cache; echo 'int main(void) { return 0; }' >a.c; for i in 1 2; do ccache gcc -c a.c; done; ccache --print-stats | awk '/^(direct|preprocessed)_cache_hit/ { hits += $2 } END { print hits }'").prints("1"),
        row("`cargo build` and `cargo test`", "export HOME=$PWD USER=root; cargo new --quiet --vcs none --name a a 2>/dev/null; cd a; echo '#[test] fn t() {}' >>src/main.rs; cargo run --quiet --offline; cargo test --quiet --offline | grep -o '1 passed'").prints("Hello, world!\n1 passed"),
        row("`javac` and `java`", "echo 'class A { public static void main(String[] a) { System.out.println(\"java\"); } }' >A.java; javac A.java; java -Xmx64m A").prints("java"),
        row("`java` with its default heap", "java -XX:+PrintFlagsFinal -version 2>/dev/null | awk '$2 == \"MaxHeapSize\" { print ($4 > 1e8) }'").prints("1"),
    ]
}

fn interpreters() -> Vec<Row> {
    vec![
        row("`python3 -m venv`", "python3 -m venv v; v/bin/python -c 'import sys; print(sys.prefix != sys.base_prefix)'; v/bin/pip --version >/dev/null").prints("True"),
        row("`pip install` of a local package", "printf '[project]\\nname = \"rowpackage\"\\nversion = \"1\"\\n[build-system]\\nrequires = [\"setuptools\"]\\nbuild-backend = \"setuptools.build_meta\"\\n' >pyproject.toml; echo 'print(\"mine\")' >rowmodule.py; printf '[options]\\npy_modules = rowmodule\\n' >setup.cfg
             python3 -m venv --system-site-packages v; v/bin/pip install -q --no-index --no-build-isolation . ; cd /; OLD=$OLDPWD; $OLD/v/bin/python -m rowmodule").prints("mine"),
        row("`multiprocessing` of Python", "python3 -c 'from multiprocessing import Pool; print(sum(Pool(4).map(abs, range(10))))'").prints("45"),
        row("`node`", "node -e 'setTimeout(() => console.log(\"node\"), 10)'").prints("node"),
        row("a worker and a test of `node`", "echo 'const { test } = require(\"node:test\"); const { Worker } = require(\"worker_threads\"); test(\"w\", () => new Promise(r => new Worker(\"0\", { eval: true }).on(\"exit\", r)));' >a.js; node --test a.js | grep -c '^. pass 1'").prints("1"),
        row("`perl`", "perl -e 'fork or exit; wait; print \"perl\\n\"'").prints("perl"),
        row("`ruby`", "ruby -e 'puts [1, 2].sum'").prints("3"),
        row("`php` and its server", "echo '<?php echo 6 * 7;' >index.php; php -S 127.0.0.1:18201 >/dev/null 2>&1 & wait_port 18201; exec 5<>/dev/tcp/127.0.0.1/18201; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&5; tail -n 1 <&5").prints("42"),
        row("`lua`", "lua5.4 -e 'print(1 + 1)'").prints("2"),
        row("`zsh` and `fish`", "zsh -c 'echo ${(U):-zsh}'; fish -c 'echo (math 1 + 1)'").prints("ZSH\n2"),
        row("`awk` and `jq`", "gawk 'BEGIN { print 2 ^ 10 }'; echo '{\"a\": [1, 2]}' | jq -c .a").prints("1024\n[1,2]"),
    ]
}

fn versions() -> Vec<Row> {
    /// Creates a repository with a commit in the directory `r`.
    macro_rules! git {
        ($rest:literal) => {
            concat!(
                "export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
                 git init -q -b main r; echo x >r/f; git -C r add f; git -C r commit -qm x\n",
                $rest
            )
        };
    }
    vec![
        row("`git clone`", git!("git clone -q r c; cat c/f")).prints("x"),
        row("`git worktree`", git!("git -C r worktree add -q ../w -b w; cat w/f")).prints("x"),
        row("`git clone` of another user's repository", git!("chown -R ci r; git clone -q r c >o 2>&1 || true; grep -o -m 1 'dubious ownership' o; git config --global --add safe.directory '*'; git clone -q r c; cat c/f; git config --global --unset-all safe.directory")).prints("dubious ownership\nx"),
        row("`git daemon`", git!("git daemon --export-all --base-path=$PWD --port=18202 --listen=127.0.0.1 &>/dev/null & wait_port 18202; git clone -q git://127.0.0.1:18202/r c; cat c/f")).prints("x"),
        row("`git lfs`", git!("cd r; git lfs install --local >/dev/null; git lfs track '*.bin' >/dev/null; echo big >a.bin; git add .; git commit -qm l; git lfs ls-files | wc -l")).prints("1"),
        row("`svn`", "svnadmin create s; svn mkdir -q -m m file://$PWD/s/trunk; svn ls file://$PWD/s").prints("trunk/"),
        row("`hg`", "hg init h; cd h; echo x >f; hg -q add f; hg commit -u a -m m; hg log --template '{desc}\\n'").prints("m"),
    ]
}
