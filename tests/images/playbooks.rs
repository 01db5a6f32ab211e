//! Customization by Ansible, which runs on the host.

use std::fs;

use nspawn_tests::sh;

use crate::lab::{FULL, Image, SMALL, expect_failure, scratch};

#[test]
fn a_playbook_changes_the_image_alone() {
    let dir = scratch("play");
    fs::create_dir_all(&dir).unwrap();
    let play = dir.join("play.yml");
    fs::write(dir.join("template"), "{{ 40 + 2 }} {{ ansible_distribution }}\n").unwrap();
    let tasks = "- hosts: all\n  tasks:\n    - copy: {content: 'by ansible', dest: /etc/ansible-was-here}\n    \
                 - lineinfile: {path: /etc/lines, line: a, create: yes, mode: '0600'}\n    \
                 - template: {src: template, dest: /etc/from-template, mode: '0644'}\n    - command: sh -c 'exit 0'\n";
    fs::write(&play, tasks).unwrap();
    let play_word = play.to_str().unwrap();
    let image = Image::from_tar("playbook", &FULL, &["--include", "python3", "--playbook", play_word]);
    assert_eq!(image.read("etc/ansible-was-here"), "by ansible");
    assert_eq!(image.read("etc/from-template"), "42 Debian\n");
    assert!(!fs::exists("/etc/ansible-was-here").unwrap());
    assert_eq!(sh(&format!("ls -A {}", image.file("root/.ansible").display())).out(), "");
    let before = image.current();
    fs::write(&play, tasks.replace("exit 0", "exit 3")).unwrap();
    let done = expect_failure(image.does("update", &["--no-upgrade"]), "is as it was: the playbook");
    assert!(done.err().contains("non-zero return code"), "{}", done.describe());
    assert_eq!((image.current(), image.left()), (before, String::new()));
    let small = Image::named("no-python");
    let options = ["--from-tar", SMALL.to_str().unwrap(), "--playbook", play_word];
    expect_failure(small.does("create", &options), "has no whole python3");
}
