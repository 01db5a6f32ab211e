complete -c nspawn-prepare -s M -l name -l machine -d 'The machine\'s name; a machine of ours that has it is replaced' -r
complete -c nspawn-prepare -l image -d 'The image, whatever a GitLab job asks for' -r
complete -c nspawn-prepare -l default-image -d 'The image where nothing else names one' -r
complete -c nspawn-prepare -l allow-image -d 'Let GitLab jobs have only images whose names match one of these, such as debian-*' -r
complete -c nspawn-prepare -l map-image -d 'Give GitLab jobs this image that ask for one whose name matches, such as \'ruby:3.*=ruby\'' -r
complete -c nspawn-prepare -l allow-service -d 'Let their services have only images whose names match one of these' -r
complete -c nspawn-prepare -l service-timeout -d 'How long a GitLab job waits for a service to listen; then it goes on all the same' -r
complete -c nspawn-prepare -l service-command -d 'What a service of the image runs, in shell quoting, where the job names nothing' -r
complete -c nspawn-prepare -l service-entrypoint -d 'What that command, or the job\'s, is run by' -r
complete -c nspawn-prepare -l service-user -d 'Whom it runs as, where the job names nobody; root by default' -r
complete -c nspawn-prepare -l service-working-directory -d 'Where it runs; the user\'s home by default' -r
complete -c nspawn-prepare -l max-services -d 'How many services a GitLab job may have' -r
complete -c nspawn-prepare -l service-port -d 'The TCP port that a service of the image is ready on [default: any]' -r
complete -c nspawn-prepare -l cache-size -d 'How large the cache of each GitLab project may become, or that none is kept' -r
complete -c nspawn-prepare -l bind -d 'Show a file or directory of the host in the machine; as in systemd-nspawn(1)' -r
complete -c nspawn-prepare -l bind-ro -d 'The same, read-only' -r
complete -c nspawn-prepare -l gitlab-runner -d 'The program to show for artifacts and caches [default: in GitLab jobs the one that called, or on PATH]' -r
complete -c nspawn-prepare -s E -l setenv -d 'Set a variable for every command in the machine' -r
complete -c nspawn-prepare -s p -l property -d 'Set a property of the machine\'s unit; as in systemd-run(1)' -r
complete -c nspawn-prepare -l private-users -d 'Whose users the machine\'s are: a range of their own, the host\'s, or the range from BASE on' -r
complete -c nspawn-prepare -l capability -d 'Capabilities that the machine has beside the usual ones; as in systemd-nspawn(1)' -r
complete -c nspawn-prepare -l drop-capability -d 'Capabilities that it has not' -r
complete -c nspawn-prepare -l system-call-filter -d 'System calls that it may use, or ~ may not, beside the usual ones' -r
complete -c nspawn-prepare -l rlimit -d 'A limit of the machine\'s processes, as in systemd-nspawn(1); CORE=1, the default, forbids core dumps, and CORE=0:infinity allows them' -r
complete -c nspawn-prepare -l network -d 'nat, none, host, veth, bridge=NAME, zone=NAME or namespace=PATH' -r
complete -c nspawn-prepare -l allow-host -d 'Let the machine connect to this address of the host, or port of it; for --network=nat, which keeps the machine from all of the host\'s own addresses' -r
complete -c nspawn-prepare -l init -d 'What runs as the machine\'s PID 1: the image\'s systemd, a stub, or nothing between commands' -r -f -a "systemd\t''
stub\t''
none\t''"
complete -c nspawn-prepare -l mask -d 'Don\'t let the machine start this unit; for --init=systemd' -r
complete -c nspawn-prepare -l boot-target -d 'Boot it to this unit instead of the image\'s default' -r
complete -c nspawn-prepare -l layer -d 'Where its writes go: disk, tmpfs[:SIZE], snapshot (btrfs, xfs), or none: it is read-only' -r
complete -c nspawn-prepare -l layer-size -d 'How much it may write: 10G, infinity, or a part of the free disk or of the memory [default: 50%]' -r
complete -c nspawn-prepare -l timeout -d 'How long the boot may take, and waiting for --max-machines: 90, 90s, 5min' -r
complete -c nspawn-prepare -l max-machines -d 'Wait until there are fewer machines than this on the host, for as long as --timeout' -r
complete -c nspawn-prepare -l standby -d 'Keep N machines of each IMAGE started, for those who will ask for one with the same options' -r
complete -c nspawn-prepare -l keep -d 'Keep a machine that did not boot, or a GitLab job\'s after its end, for a look' -r -f -a "never\t''
failure\t''
always\t''"
complete -c nspawn-prepare -l keep-for -d 'For how long then; nspawn-cleanup --stale takes it after that' -r
complete -c nspawn-prepare -l owner -d 'A process with which the machine becomes nobody\'s, for nspawn-cleanup --stale to remove it' -r
complete -c nspawn-prepare -l no-new-privileges -d 'Let no process gain privileges by executing a program, as sudo does'
complete -c nspawn-prepare -l nesting -d 'Let the machine run containers of its own'
complete -c nspawn-prepare -l dry-run -d 'Print the commands that would run, and run none'
complete -c nspawn-prepare -l json -d 'Print the machine\'s description as JSON instead of its name'
complete -c nspawn-prepare -s v -l verbose -d 'Print the commands as they run, on stderr'
complete -c nspawn-prepare -s h -l help -d 'Print help'
complete -c nspawn-prepare -s V -l version -d 'Print version'
