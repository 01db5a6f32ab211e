complete -c nspawn-prepare -s M -l name -l machine -d 'Name of the machine, which no machine in use may have' -r
complete -c nspawn-prepare -l image -d 'Name of the image, which overrides the one that a GitLab job requests' -r
complete -c nspawn-prepare -l default-image -d 'Name of the image if neither the command line nor the job names one' -r
complete -c nspawn-prepare -l allow-image -d 'Allow GitLab jobs only images whose names match one of these patterns, such as debian-*' -r
complete -c nspawn-prepare -l map-image -d 'Use this image for GitLab jobs whose image name matches the pattern, such as \'ruby:3.*=ruby\'' -r
complete -c nspawn-prepare -l allow-service -d 'Allow services of GitLab jobs only images whose names match one of these patterns' -r
complete -c nspawn-prepare -l service-timeout -d 'Time for which a GitLab job waits until a service listens; after that, the job starts anyway' -r
complete -c nspawn-prepare -l service-command -d 'Command, in shell quoting, that a machine of the image runs as a service, if the job names none' -r
complete -c nspawn-prepare -l service-entrypoint -d 'Entrypoint of a service, which gets the command as arguments, if the job names none' -r
complete -c nspawn-prepare -l service-user -d 'User that the command of a service runs as, if the job names none; root by default' -r
complete -c nspawn-prepare -l service-working-directory -d 'Directory that the command of a service runs in; the user\'s home by default' -r
complete -c nspawn-prepare -l max-services -d 'Maximum number of services of a GitLab job' -r
complete -c nspawn-prepare -l service-port -d 'TCP port on which a service of the image listens when it is ready [default: any]' -r
complete -c nspawn-prepare -l cache-size -d 'Maximum size of the cache of each GitLab project; no disables caches' -r
complete -c nspawn-prepare -l bind -d 'Bind mount a file or directory of the host into the machine; as in systemd-nspawn(1), and the option nosymlinks refuses a SOURCE that leads through a symbolic link' -r
complete -c nspawn-prepare -l bind-ro -d 'Same as --bind, but read-only' -r
complete -c nspawn-prepare -l gitlab-runner -d 'GitLab Runner program for artifacts and caches in the machine; jobs get the calling one by default, or the one on PATH' -r
complete -c nspawn-prepare -s E -l setenv -d 'Set a variable for every command in the machine' -r
complete -c nspawn-prepare -s p -l property -d 'Set a property of the machine\'s unit; as in systemd-run(1)' -r
complete -c nspawn-prepare -l private-users -d 'UID range of the machine: an unused one, the host\'s own UIDs, or the SIZE (65536) IDs from BASE on' -r
complete -c nspawn-prepare -l capability -d 'Grant the machine these capabilities besides the default ones; as in systemd-nspawn(1)' -r
complete -c nspawn-prepare -l drop-capability -d 'Take these capabilities from the machine' -r
complete -c nspawn-prepare -l system-call-filter -d 'Allow these system calls besides the default ones, or forbid those after ~; io_uring_setup opens io_uring, and socketcall opens sockets to 32-bit programs that jobs install on x86-64' -r
complete -c nspawn-prepare -l personality -d 'Architecture that uname -m prints in the machine: x86-64 or x86, arm64 or arm [default: that of the image]' -r
complete -c nspawn-prepare -l allow-address-family -d 'Let the machine create sockets of this family, such as AF_ALG, besides those of AF_UNIX, AF_INET, AF_INET6, AF_NETLINK and AF_PACKET' -r
complete -c nspawn-prepare -l device -d 'Give the machine a device of the host: fuse, kvm, tun, dri, kfd, nvidia, or the path of a character device' -r
complete -c nspawn-prepare -l rlimit -d 'Resource limit of the machine\'s processes, as in systemd-nspawn(1); CORE=1, the default, forbids core dumps, and CORE=0:infinity allows them' -r
complete -c nspawn-prepare -l network -d 'nat, none, host, veth, bridge=NAME, zone=NAME or namespace=PATH' -r
complete -c nspawn-prepare -l allow-host -d 'Let the machine connect to this address of the host, or only to this port of it; with --network=nat, the host is closed otherwise' -r
complete -c nspawn-prepare -l init -d 'PID 1 of the machine: the image\'s systemd, a stub, or no process between commands' -r -f -a "systemd\t''
stub\t''
none\t''"
complete -c nspawn-prepare -l mask -d 'Prevent the machine from starting this unit; for --init=systemd' -r
complete -c nspawn-prepare -l boot-target -d 'Boot to this unit instead of the image\'s default target' -r
complete -c nspawn-prepare -l layer -d 'Place for the machine\'s writes: disk, tmpfs[:SIZE], snapshot (btrfs, xfs), or none for a read-only root' -r
complete -c nspawn-prepare -l layer-size -d 'Maximum size of the layer: 10G, infinity, or a percentage of the free disk space or of the memory [default: 50%]' -r
complete -c nspawn-prepare -l timeout -d 'Time limit for the boot, and for the wait of --max-machines: 90, 90s, 5min' -r
complete -c nspawn-prepare -l max-machines -d 'Wait until the host has fewer machines than this, for --timeout at most' -r
complete -c nspawn-prepare -l keep -d 'Keep a machine that did not boot, or a GitLab job\'s machine after the job, for inspection' -r -f -a "never\t''
failure\t''
always\t''"
complete -c nspawn-prepare -l keep-for -d 'Time for which --keep keeps a machine; nspawn-cleanup --stale removes it afterwards' -r
complete -c nspawn-prepare -l owner -d 'Process that owns the machine; when it ends, the machine is stale, and nspawn-cleanup --stale removes it' -r
complete -c nspawn-prepare -l standby -d 'Keep N machines of each IMAGE started, for requests with the same options; 0 removes them' -r
complete -c nspawn-prepare -l replace -d 'Replace a machine of the same name even if it is in use'
complete -c nspawn-prepare -l no-new-privileges -d 'Let no process gain privileges by executing a program, as sudo does'
complete -c nspawn-prepare -l nesting -d 'Let the machine run containers of its own'
complete -c nspawn-prepare -l dry-run -d 'Print the commands that would run, without running them'
complete -c nspawn-prepare -l json -d 'Print a description of the machine as JSON instead of its name'
complete -c nspawn-prepare -s v -l verbose -d 'Print the commands on stderr as they run'
complete -c nspawn-prepare -l config -d 'Print the configuration for GitLab Runner\'s config stage'
complete -c nspawn-prepare -s h -l help -d 'Print help'
complete -c nspawn-prepare -s V -l version -d 'Print version'
