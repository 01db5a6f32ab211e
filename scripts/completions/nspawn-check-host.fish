complete -c nspawn-check-host -l no-boot -d 'do not start machines'
complete -c nspawn-check-host -s h -l help -d 'Print help'
