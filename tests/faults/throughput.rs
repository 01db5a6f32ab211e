//! A command moves many bytes, out of a machine and into it. All of them arrive, and about as fast
//! as with systemd-run.

use std::time::Instant;

use nspawn_tests::sh;

use crate::suite::{Suite, machine};

pub fn rows(suite: &mut Suite) {
    let is_long = suite.is_long;
    let mib = suite.times(256, 1024);
    for (way, ours, theirs) in [
        (
            "out of",
            "nspawn-run NAME cat /dev/shm/bytes",
            "systemd-run --quiet --wait --pipe -M NAME cat /dev/shm/bytes",
        ),
        (
            "into",
            "nspawn-run NAME cat <FILE",
            "systemd-run --quiet --wait --pipe -M NAME cat <FILE",
        ),
    ] {
        suite.row_with_note(&format!("{mib} MiB {way} a machine arrive"), 1, |_| {
            let machine = machine(&[]);
            let file = format!("/dev/shm/{}", machine.name);
            sh(&format!(
                "openssl rand {0} >{file} 2>/dev/null || head -c {0} /dev/urandom >{file}",
                mib << 20
            ))
            .expect(0);
            sh(&format!(
                "nspawn-run {} sh -c 'cat >/dev/shm/bytes' <{file}",
                machine.name
            ))
            .expect(0);
            let run = |line: &str| {
                let line = line.replace("NAME", &machine.name).replace("FILE", &file);
                let started = Instant::now();
                let sum = sh(&format!("{line} | cksum")).expect(0).out();
                (sum, started.elapsed().as_secs_f64())
            };
            let sum = sh(&format!("cksum <{file}")).expect(0).out();
            let mut best = [f64::MAX; 2];
            for _ in 0..3 {
                for (best, line) in best.iter_mut().zip([ours, theirs]) {
                    let (arrived, took) = run(line);
                    assert_eq!(arrived, sum);
                    *best = best.min(took);
                }
            }
            sh(&format!("rm {file}")).expect(0);
            let ratio = best[1] / best[0];
            // The long suite runs on a host that does nothing else.
            assert!(
                !is_long || ratio >= 0.9,
                "throughput is {ratio:.2} of systemd-run's"
            );
            Some(format!(
                "throughput relative to systemd-run --pipe, the best of three: {ratio:.2}"
            ))
        });
    }
    let files = suite.times(20_000, 60_000);
    suite.row_with_note(
        &format!("{files} files are created as fast after their deletion"),
        1,
        |_| {
            let machine = machine(&["--init=stub"]);
            let create = || {
                let started = Instant::now();
                let line =
                    format!("mkdir /root/files && cd /root/files && seq {files} | xargs touch");
                machine.sh(&line).expect(0);
                started.elapsed().as_secs_f64()
            };
            let first = create();
            machine.sh("rm -r /root/files").expect(0);
            let ratio = create() / first;
            assert!(
                ratio < 4.0,
                "creating the files again takes {ratio:.1} times as long"
            );
            Some(format!(
                "the time, relative to the first creation: {ratio:.2}"
            ))
        },
    );
}
