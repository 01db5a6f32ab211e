//! Customization by Ansible, which runs on the host, and by packages of the image. These tests need
//! the network.

use std::fs;

use nspawn_tests::sh;

use crate::lab::{FULL, Image, SMALL, expect_failure, scratch};

#[test]
fn playbooks_and_packages_change_only_the_image() {
    let dir = scratch("play");
    fs::create_dir_all(&dir).unwrap();
    let play = dir.join("play.yml");
    fs::write(
        dir.join("template"),
        "{{ 40 + 2 }} {{ ansible_distribution }}\n",
    )
    .unwrap();
    let tasks = "- hosts: all\n  tasks:\n    - copy: {content: 'by ansible', dest: /etc/ansible-was-here}\n    \
                 - lineinfile: {path: /etc/lines, line: a, create: yes, mode: '0600'}\n    \
                 - template: {src: template, dest: /etc/from-template, mode: '0644'}\n    - command: sh -c 'exit 0'\n";
    fs::write(&play, tasks).unwrap();
    let play_word = play.to_str().unwrap();
    let image = Image::from_tar(
        "playbook",
        &FULL,
        &["--include", "python3", "--playbook", play_word],
    );
    assert_eq!(image.read("etc/ansible-was-here"), "by ansible");
    assert_eq!(image.read("etc/from-template"), "42 Debian\n");
    assert!(!fs::exists("/etc/ansible-was-here").unwrap());
    assert_eq!(
        sh(&format!("ls -A {}", image.file("root/.ansible").display())).out(),
        ""
    );
    let before = image.current();
    fs::write(&play, tasks.replace("exit 0", "exit 3")).unwrap();
    let done = expect_failure(
        image.run("update", &["--no-upgrade"]),
        "is unchanged: the playbook",
    );
    done.expect_err("non-zero return code");
    assert_eq!(
        (image.current(), image.leftovers()),
        (before, String::new())
    );
    fs::remove_file(&play).unwrap();
    packages_are_upgraded_and_added(&image, play_word);
    fs::write(&play, tasks).unwrap();
    let small = Image::named("no-python");
    let options = [
        "--from-tar",
        SMALL.to_str().unwrap(),
        "--playbook",
        play_word,
    ];
    expect_failure(small.run("create", &options), "has no complete python3");
}

fn packages_are_upgraded_and_added(image: &Image, play: &str) {
    let description = fs::read_to_string(image.description()).unwrap();
    expect_failure(
        image.run("update", &[]),
        &format!("there is no file {play}"),
    );
    let description =
        description.replace(&format!("--playbook {play}"), "--include tree # for a look");
    fs::write(image.description(), description).unwrap();
    image.run("update", &[]).expect(0);
    assert!(image.file("usr/bin/tree").exists());
    // No package lists, archives or policies stay in the image.
    for dir in ["var/lib/apt/lists", "var/cache/apt/archives"] {
        let files = sh(&format!("find {} -type f", image.file(dir).display())).out();
        assert_eq!(files, "", "{dir}");
    }
    assert!(!image.file("usr/sbin/policy-rc.d").exists());
    assert_eq!(fs::metadata(image.file("etc/machine-id")).unwrap().len(), 0);
}
