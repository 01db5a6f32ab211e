complete -c nspawn-exec -s h -l help -d 'Print help'
