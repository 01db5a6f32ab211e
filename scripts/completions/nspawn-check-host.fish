complete -c nspawn-check-host -l no-boot -d 'start no machine'
complete -c nspawn-check-host -s h -l help -d 'Print help'
