//! The environment of a login: variables of the image, and the user's systemd.

use nspawn_tests::{Machine, call, finish};

const INITS: [&str; 3] = ["--init=systemd", "--init=stub", "--init=none"];

/// Makes users and files of variables.
const SET_UP: &str = "useradd --create-home ann; rm -f /etc/default/locale\n\
    printf 'LANG=\"de_DE.UTF-8\"\\nPATH=/no\\n' >/etc/locale.conf\n\
    echo LC_MESSAGES=C >/etc/default/locale\n\
    cat >/etc/environment <<'END'\n# a comment\nexport A='a b'\n\n  B=b # comment\nTWO=1\nTWO=2\nNONE=\nno variable\n=x\nLANGUAGE=en\nCALLER=image\nEND";

const PRINT: &str = "echo \"$LANG $LC_MESSAGES $LANGUAGE|$A|$B|$TWO|$NONE|$CALLER|$PATH|$HOME\"";

#[test]
fn variables_of_the_image_are_set_and_the_caller_has_precedence() {
    for init in INITS {
        let machine = Machine::with(&[init]);
        machine.sh(SET_UP).expect(0);
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let expected = |caller: &str, home: &str| {
            format!("de_DE.UTF-8 C en|a b|b|2||{caller}|{path}|{home}\n")
        };
        assert_eq!(
            machine.sh(PRINT).out(),
            expected("image", "/root"),
            "{init}"
        );
        let options = ["--uid=ann", "--setenv=CALLER=caller", &machine.name];
        let done = call("nspawn-run", options.iter().chain(&["sh", "-c", PRINT]));
        assert_eq!(done.out(), expected("caller", "/home/ann"), "{init}");
        // Nothing that a job puts in these places keeps commands from running.
        for spoiler in [
            "rm /etc/environment; mkfifo /etc/environment",
            "rm /etc/environment; mkdir /etc/environment",
            "rm -r /etc/environment; ln -s /dev/zero /etc/environment",
            "ln -sf /etc/environment /etc/environment; head -c 3000000 /dev/zero >/etc/locale.conf",
        ] {
            machine.sh(spoiler).expect(0);
            machine.run(["true"]).expect(0);
        }
    }
}

/// Runs the words as ann, with options of `nspawn-run`.
fn as_ann(machine: &Machine, options: &[&str], words: &[&str]) -> nspawn_tests::Done {
    let all = [&["--uid=ann"], options, &[&*machine.name], words].concat();
    call("nspawn-run", all)
}

const PRINT_BUS: &str = "echo \"$XDG_RUNTIME_DIR|$DBUS_SESSION_BUS_ADDRESS\"";

#[test]
fn user_manager_is_started_on_request_and_then_known() {
    let machine = Machine::new();
    machine.run(["useradd", "--create-home", "ann"]).expect(0);
    let print = |options: &[&str]| as_ann(&machine, options, &["sh", "-c", PRINT_BUS]);
    assert_eq!(print(&[]).expect(0).out(), "|\n");
    let state = ["systemctl", "--user", "is-system-running"];
    let done = as_ann(&machine, &["--user-manager"], &state).expect(0);
    assert_eq!(done.out(), "running\n");
    let uid = as_ann(&machine, &[], &["id", "--user"]).expect(0).out();
    let directory = format!("/run/user/{}", uid.trim());
    let done = print(&[]).expect(0);
    assert!(
        done.out().starts_with(&format!("{directory}|")),
        "{}",
        done.out()
    );
    as_ann(&machine, &[], &state).expect(0);
    as_ann(
        &machine,
        &[],
        &["systemctl", "--user", "start", "default.target"],
    )
    .expect(0);
    assert_eq!(
        as_ann(
            &machine,
            &["--setenv=XDG_RUNTIME_DIR=/x"],
            &["printenv", "XDG_RUNTIME_DIR"]
        )
        .out(),
        "/x\n"
    );
    machine.sh(PRINT_BUS).expect_out("|");
    let bus = format!("touch {directory}/bus");
    as_ann(&machine, &[], &["sh", "-c", &bus]).expect(0);
    assert_eq!(
        print(&[]).out(),
        format!("{directory}|\n"),
        "a file is no bus"
    );
}

#[test]
fn lingering_user_has_a_manager_in_each_command() {
    let machine = Machine::new();
    machine
        .sh("useradd --create-home ann && loginctl enable-linger ann && systemctl start user@$(id -u ann)")
        .expect(0);
    let state = ["systemctl", "--user", "is-system-running"];
    assert_eq!(as_ann(&machine, &[], &state).expect(0).out(), "running\n");
}

#[test]
fn runtime_directory_of_another_owner_is_not_used() {
    let machine = Machine::with(&["--init=stub"]);
    machine
        .sh("useradd ann; mkdir -p /run/user/$(id -u ann)")
        .expect(0);
    let print = ["sh", "-c", PRINT_BUS];
    assert_eq!(as_ann(&machine, &[], &print).expect(0).out(), "|\n");
    machine.sh("chown ann /run/user/$(id -u ann)").expect(0);
    as_ann(&machine, &[], &print).expect_out("/run/user/");
}

#[test]
fn user_manager_without_a_systemd_is_refused() {
    let machine = Machine::with(&["--init=stub"]);
    let done = finish(
        std::process::Command::new("nspawn-run").args(["--user-manager", &machine.name, "true"]),
        b"",
    );
    done.expect_error(125, "no systemd runs in the machine");
}
