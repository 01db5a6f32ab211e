//! Images that are stacks of layers (systemd.mstack(7)).

use nspawn_tests::{call, image};

use super::Name;

/// Makes a stack of the test host's image and of a layer that changes it as an overlay does.
fn stack(kind: &str) -> Name {
    let name = Name::new(kind);
    name.sh(&format!(
        "mkdir -p $name.mstack/layer@9 $name.mstack/layer@10 $name.d
         ln -s ../$(basename $(realpath {image})) $name.mstack/layer@1
         test -e $name.mstack/layer@1/usr || ln -sfn $(realpath {image}) $name.mstack/layer@1
         echo nine >$name.mstack/layer@9/number
         mount -t tmpfs none $name.d; mkdir $name.d/upper $name.d/work $name.d/root
         mount -t overlay -o lowerdir=$name.mstack/layer@1,upperdir=$name.d/upper,workdir=$name.d/work none $name.d/root
         cd $name.d/root; rm etc/debian_version; rm -r usr/share/doc; mkdir usr/share/doc; echo ten >number
         echo changed >>etc/motd; chown 1000:1000 number; cd ../..; umount $name.d/root
         cp --archive $name.d/upper/. $name.mstack/layer@10
         umount $name.d; rmdir $name.d",
        image = image()
    ));
    name
}

/// Line that shows what the layers have made of the image.
const SHOW: &str = "cat /number; stat -c %u /number; ls /usr/share/doc /etc/debian_version 2>&1; tail -n1 /etc/motd; \
    mv /usr/share/doc /usr/share/moved && rm -r /usr/share/moved && touch /usr/share/new && echo writable";

fn expect_stack(shown: &str) {
    assert!(
        shown.starts_with("ten\n1000\n")
            && shown.contains("cannot access")
            && shown.ends_with("changed\nwritable\n")
            && shown.lines().count() <= 6,
        "{shown}"
    );
}

#[test]
fn layers_are_stacked_in_every_mode() {
    let name = stack("stack");
    for options in [
        &["--init=systemd"][..],
        &["--init=stub", "--layer=tmpfs"],
        &["--init=stub", "--private-users=no"],
        &["--init=none"],
    ] {
        let machine = name.machine(options);
        expect_stack(&machine.run(["sh", "-c", SHOW]).expect(0).out());
        let listed = call("nspawn-cleanup", ["--list"]).expect(0).out();
        let of_machine = listed
            .lines()
            .filter(|line| line.starts_with(&format!("{}\t", machine.name)));
        assert_eq!(of_machine.count(), 4, "{listed}");
    }
    name.sh(
        "test -e $name.mstack/layer@1/etc/debian_version; test ! -e $name.mstack/layer@10/usr/share/new",
    );
}

#[test]
fn machine_may_have_500_layers_and_a_disk_image_among_them() {
    let name = stack("layers");
    name.sh(
        "for number in $(seq 20 515); do mkdir $name.mstack/layer@$number; echo $number >$name.mstack/layer@$number/top; done
         mkdir $name.d; echo disk >$name.d/top; mksquashfs $name.d $name.mstack/layer@600.raw -quiet -no-progress; rm -r $name.d",
    );
    let machine = name.machine(&["--init=stub"]);
    let shown = machine.run(["cat", "/top", "/number"]).expect(0);
    assert_eq!(shown.out(), "disk\nten\n");
    drop(machine);
    assert_eq!(name.loop_devices(), "");
    name.sh("mkdir $name.mstack/layer@700");
    name.expect_refused(&[], "it has 501 layers");
}

#[test]
fn snapshot_of_a_single_layer_is_one_of_the_layer() {
    let name = stack("single");
    name.sh("rm -r $name.mstack/layer@9 $name.mstack/layer@10");
    let options = ["--dry-run", "--layer=snapshot", "--layer-size=infinity"];
    let plan = call("nspawn-prepare", options.iter().chain(&[&*name.0])).expect(0);
    let layer = name.sh("realpath $name.mstack/layer@1");
    let copies = plan
        .out()
        .lines()
        .any(|line| line.contains(layer.trim()) && line.starts_with("cp "));
    assert!(copies, "{}", plan.describe());
}

#[test]
fn unusable_stacks_are_refused() {
    let name = stack("unusable");
    name.expect_refused(
        &["--layer=snapshot", "--layer-size=infinity"],
        "or a stack of layers",
    );
    name.sh("mkdir $name.mstack/bind@var");
    name.expect_refused(&[], "its entry bind@var can't be a layer");
    name.sh("rm -r $name.mstack/*");
    name.expect_refused(&[], "it has 0 layers");
    name.sh("ln -s ../nosuch $name.mstack/layer@1");
    name.expect_refused(&[], "its entry layer@1 can't be a layer");
    name.sh("rm $name.mstack/layer@1; mkdir $name.mstack/layer@1 $name.mstack/layer@2");
    name.expect_refused(&["--init=stub"], "is not an OS tree");
}
