complete -c nspawn-run -l uid -d 'Run as this user of the machine, by name or number; root by default' -r
complete -c nspawn-run -l working-directory -d 'Run in this directory; the user\'s home by default' -r
complete -c nspawn-run -s E -l setenv -d 'Set a variable for the command' -r
complete -c nspawn-run -l stop-timeout -d 'Grace period between SIGTERM and SIGKILL when nspawn-run ends the command' -r
complete -c nspawn-run -l image -d 'Create a read-only machine of this image for the command, and remove it afterwards' -r
complete -c nspawn-run -s t -l pty -d 'Run on a new terminal in the machine'
complete -c nspawn-run -l user-manager -d 'Start the user\'s systemd first, for systemctl --user'
complete -c nspawn-run -l kill-remaining -d 'Kill the processes that the command leaves running in the background'
complete -c nspawn-run -s h -l help -d 'Print help'
complete -c nspawn-run -s V -l version -d 'Print version'
