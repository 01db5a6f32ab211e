complete -c nspawn-gitlab-runner-config -l url -d 'the GitLab server\'s' -r
complete -c nspawn-gitlab-runner-config -l name -d 'the runner\'s name (default: this host\'s)' -r
complete -c nspawn-gitlab-runner-config -l default-image -d 'for jobs that name no image' -r
complete -c nspawn-gitlab-runner-config -l limit -d 'how many of its jobs may run at once (default: GitLab Runner\'s, no limit of its own)' -r
complete -c nspawn-gitlab-runner-config -l add -d 'add the block to this config.toml instead; the one before is kept as FILE.old, and GitLab Runner reads the new one by itself' -r -F
complete -c nspawn-gitlab-runner-config -s h -l help -d 'Print help'
