# shellcheck shell=bash
# Functions that the bash programs share. Before a program sources this file it sets `program`, its
# name in messages. It may set `failure_status`, the exit status of `die`, which is 1 by default.

note() { # MESSAGE…
    printf '%s: %s\n' "${program:?}" "$*" >&2
}

die() { # MESSAGE…
    note "$@"
    exit "${failure_status:-1}"
}

# Prints a heading for what comes next in the output of a task with several steps.
heading() { # TEXT
    printf '\n== %s\n' "$1"
}

# Ends the program if the option OPTION is the last word of the command line.
require_value() { # OPTION [VALUE…]
    (($# >= 2)) || die "$1 has no value"
}

# Cron and su(1) leave these directories out of PATH.
extend_path() {
    PATH=$PATH:/usr/local/bin:/usr/local/sbin:/usr/sbin:/sbin
}

# Returns whether VERSION is MINIMUM or newer.
at_least() { # VERSION MINIMUM
    printf '%s\n' "$2" "$1" | sort --check=quiet --version-sort
}

is_program() { # NAME
    [[ -n $(type -P "$1") ]]
}

systemd_is_init() {
    [[ -d /run/systemd/system ]]
}

# Prints the code name of the release that this host runs, or nothing if it has none.
host_release() {
    sed -n 's/^VERSION_CODENAME=//p' /etc/os-release
}

join_with_commas() { # WORD…
    local IFS=,
    echo "$*"
}

# Escapes a path for an option of systemd-nspawn whose fields are separated by colons.
escape_path() { # PATH
    local path=${1//\\/\\\\}
    echo "${path//:/\\:}"
}
