complete -c autopkgtest-virt-nspawn-ci -s h -l help -d 'Print help'
