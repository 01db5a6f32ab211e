complete -c nspawn-check-host -l h, -d 'show this help' -r
complete -c nspawn-check-host -l no-boot -d 'start no machine'
complete -c nspawn-check-host -s h -l help -d 'Print help'
