complete -c nspawn-run -l uid -d 'Run as this user of the machine, by name or number; root by default' -r
complete -c nspawn-run -l working-directory -d 'Run in this directory; the user\'s home by default' -r
complete -c nspawn-run -s E -l setenv -d 'Set a variable for the command' -r
complete -c nspawn-run -l stop-timeout -d 'How long a command may take to end after SIGTERM, before SIGKILL' -r
complete -c nspawn-run -l image -d 'Run in a machine of this image that is there for the command only, and is read-only' -r
complete -c nspawn-run -s t -l pty -d 'Run on a terminal of the machine\'s own'
complete -c nspawn-run -l kill-remaining -d 'End what the command leaves running in the background'
complete -c nspawn-run -s h -l help -d 'Print help'
complete -c nspawn-run -s V -l version -d 'Print version'
