complete -c nspawn-github-actions-hook -s h -l help -d 'Print help'
