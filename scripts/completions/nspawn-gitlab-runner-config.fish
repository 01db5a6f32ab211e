complete -c nspawn-gitlab-runner-config -l url -d 'the URL of the GitLab server' -r
complete -c nspawn-gitlab-runner-config -l name -d 'the name of the runner (default: the name of this host)' -r
complete -c nspawn-gitlab-runner-config -l default-image -d 'the image of jobs that name no image' -r
complete -c nspawn-gitlab-runner-config -l limit -d 'maximum number of jobs of the runner at once (default: as many as GitLab Runner allows)' -r
complete -c nspawn-gitlab-runner-config -l add -d 'add the block to this config.toml instead. The previous file is kept as FILE.old, and GitLab Runner reads the new one without a restart' -r -F
complete -c nspawn-gitlab-runner-config -s h -l help -d 'Print help'
