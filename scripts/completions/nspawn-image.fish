# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_nspawn_image_global_optspecs
    string join \n h/help
end

function __fish_nspawn_image_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_nspawn_image_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_nspawn_image_using_subcommand
    set -l cmd (__fish_nspawn_image_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c nspawn-image -n "__fish_nspawn_image_needs_command" -s h -l help -d 'Print help'
complete -c nspawn-image -n "__fish_nspawn_image_needs_command" -f -a "adopt" -d 'turn a plain directory into an image with versions'
complete -c nspawn-image -n "__fish_nspawn_image_needs_command" -f -a "create" -d 'create an image'
complete -c nspawn-image -n "__fish_nspawn_image_needs_command" -f -a "export" -d 'write an image to a file, with checksums, for other hosts'
complete -c nspawn-image -n "__fish_nspawn_image_needs_command" -f -a "list" -d 'list the images'
complete -c nspawn-image -n "__fish_nspawn_image_needs_command" -f -a "login" -d 'open a shell in a copy, which \'exit 0\' makes the current version'
complete -c nspawn-image -n "__fish_nspawn_image_needs_command" -f -a "prune" -d 'delete old versions, and leftovers of killed commands'
complete -c nspawn-image -n "__fish_nspawn_image_needs_command" -f -a "pull" -d 'fetch such a file, and check who signed it'
complete -c nspawn-image -n "__fish_nspawn_image_needs_command" -f -a "remove" -d 'delete an image that no machine uses'
complete -c nspawn-image -n "__fish_nspawn_image_needs_command" -f -a "rollback" -d 'go back to the previous version'
complete -c nspawn-image -n "__fish_nspawn_image_needs_command" -f -a "update" -d 'create a new version of each image, with upgraded packages'
complete -c nspawn-image -n "__fish_nspawn_image_using_subcommand adopt" -l directory -d 'the directory of the images (default: /var/lib/machines); images of other directories have no descriptions' -r -f -a "(__fish_complete_directories)"
complete -c nspawn-image -n "__fish_nspawn_image_using_subcommand adopt" -s h -l help -d 'Print help'
complete -c nspawn-image -n "__fish_nspawn_image_using_subcommand create" -l release -d 'the release to install, such as bookworm or noble; also fedora-42 (with dnf) and arch (with pacstrap) (default: NAME if that is a release, else the one of this host)' -r
complete -c nspawn-image -n "__fish_nspawn_image_using_subcommand create" -l architecture -d 'install for this architecture, such as arm64 (default: that of this host); for another one the host needs qemu-user-static and arch-test' -r
complete -c nspawn-image -n "__fish_nspawn_image_using_subcommand create" -l from-tar -d 'unpack this instead of installing a release' -r -F
complete -c nspawn-image -n "__fish_nspawn_image_using_subcommand create" -l from-oci -d 'unpack this container image instead, as skopeo or podman name it' -r
complete -c nspawn-image -n "__fish_nspawn_image_using_subcommand create" -l include -d 'install these packages, too; may be repeated' -r
complete -c nspawn-image -n "__fish_nspawn_image_using_subcommand create" -l mirror -d 'install from this mirror instead of the release\'s default one' -r
complete -c nspawn-image -n "__fish_nspawn_image_using_subcommand create" -l apt-option -d 'an apt configuration line, such as \'Acquire::Check-Valid-Until "false"\', for the installation and for the image; may be repeated' -r
complete -c nspawn-image -n "__fish_nspawn_image_using_subcommand create" -l script -d 'run this in the image as root, with network; may be repeated' -r -F
complete -c nspawn-image -n "__fish_nspawn_image_using_subcommand create" -l playbook -d 'run this Ansible playbook on the image, which needs python3; may be repeated' -r -F
complete -c nspawn-image -n "__fish_nspawn_image_using_subcommand create" -l directory -d 'the directory of the images (default: /var/lib/machines); images of other directories have no descriptions' -r -f -a "(__fish_complete_directories)"
complete -c nspawn-image -n "__fish_nspawn_image_using_subcommand create" -l build-tools -d 'install what most builds need: build-essential pkg-config cmake ninja-build python3 file'
complete -c nspawn-image -n "__fish_nspawn_image_using_subcommand create" -l minimal -d 'leave out documentation and translations'
complete -c nspawn-image -n "__fish_nspawn_image_using_subcommand create" -l accept-degraded -d 'accept a version although some of its units fail when it boots'
complete -c nspawn-image -n "__fish_nspawn_image_using_subcommand create" -l no-boot-test -d 'accept a version without a test of its boot'
complete -c nspawn-image -n "__fish_nspawn_image_using_subcommand create" -l unversioned -d '(create) plain directory, without versions and description'
complete -c nspawn-image -n "__fish_nspawn_image_using_subcommand create" -s h -l help -d 'Print help'
complete -c nspawn-image -n "__fish_nspawn_image_using_subcommand export" -l sign -d '(export) sign the checksums with this gpg key' -r
complete -c nspawn-image -n "__fish_nspawn_image_using_subcommand export" -l directory -d 'the directory of the images (default: /var/lib/machines); images of other directories have no descriptions' -r -f -a "(__fish_complete_directories)"
complete -c nspawn-image -n "__fish_nspawn_image_using_subcommand export" -s h -l help -d 'Print help'
complete -c nspawn-image -n "__fish_nspawn_image_using_subcommand list" -l directory -d 'the directory of the images (default: /var/lib/machines); images of other directories have no descriptions' -r -f -a "(__fish_complete_directories)"
complete -c nspawn-image -n "__fish_nspawn_image_using_subcommand list" -s h -l help -d 'Print help'
complete -c nspawn-image -n "__fish_nspawn_image_using_subcommand login" -l keep -d '(update, login, pull, prune) keep N versions before the current one (default: 1)' -r
complete -c nspawn-image -n "__fish_nspawn_image_using_subcommand login" -l directory -d 'the directory of the images (default: /var/lib/machines); images of other directories have no descriptions' -r -f -a "(__fish_complete_directories)"
complete -c nspawn-image -n "__fish_nspawn_image_using_subcommand login" -l accept-degraded -d 'accept a version although some of its units fail when it boots'
complete -c nspawn-image -n "__fish_nspawn_image_using_subcommand login" -l no-boot-test -d 'accept a version without a test of its boot'
complete -c nspawn-image -n "__fish_nspawn_image_using_subcommand login" -s h -l help -d 'Print help'
complete -c nspawn-image -n "__fish_nspawn_image_using_subcommand prune" -l keep -d '(update, login, pull, prune) keep N versions before the current one (default: 1)' -r
complete -c nspawn-image -n "__fish_nspawn_image_using_subcommand prune" -l directory -d 'the directory of the images (default: /var/lib/machines); images of other directories have no descriptions' -r -f -a "(__fish_complete_directories)"
complete -c nspawn-image -n "__fish_nspawn_image_using_subcommand prune" -s h -l help -d 'Print help'
complete -c nspawn-image -n "__fish_nspawn_image_using_subcommand pull" -l verify -d '(pull) signature (default; by the keys in /etc/systemd/import-pubring.gpg), checksum or no' -r
complete -c nspawn-image -n "__fish_nspawn_image_using_subcommand pull" -l keep -d '(update, login, pull, prune) keep N versions before the current one (default: 1)' -r
complete -c nspawn-image -n "__fish_nspawn_image_using_subcommand pull" -l directory -d 'the directory of the images (default: /var/lib/machines); images of other directories have no descriptions' -r -f -a "(__fish_complete_directories)"
complete -c nspawn-image -n "__fish_nspawn_image_using_subcommand pull" -s h -l help -d 'Print help'
complete -c nspawn-image -n "__fish_nspawn_image_using_subcommand remove" -l directory -d 'the directory of the images (default: /var/lib/machines); images of other directories have no descriptions' -r -f -a "(__fish_complete_directories)"
complete -c nspawn-image -n "__fish_nspawn_image_using_subcommand remove" -s h -l help -d 'Print help'
complete -c nspawn-image -n "__fish_nspawn_image_using_subcommand rollback" -l directory -d 'the directory of the images (default: /var/lib/machines); images of other directories have no descriptions' -r -f -a "(__fish_complete_directories)"
complete -c nspawn-image -n "__fish_nspawn_image_using_subcommand rollback" -s h -l help -d 'Print help'
complete -c nspawn-image -n "__fish_nspawn_image_using_subcommand update" -l keep -d '(update, login, pull, prune) keep N versions before the current one (default: 1)' -r
complete -c nspawn-image -n "__fish_nspawn_image_using_subcommand update" -l directory -d 'the directory of the images (default: /var/lib/machines); images of other directories have no descriptions' -r -f -a "(__fish_complete_directories)"
complete -c nspawn-image -n "__fish_nspawn_image_using_subcommand update" -l all -d '(update) update all images that have a description'
complete -c nspawn-image -n "__fish_nspawn_image_using_subcommand update" -l no-upgrade -d '(update) customize the image without upgrading its packages'
complete -c nspawn-image -n "__fish_nspawn_image_using_subcommand update" -l accept-degraded -d 'accept a version although some of its units fail when it boots'
complete -c nspawn-image -n "__fish_nspawn_image_using_subcommand update" -l no-boot-test -d 'accept a version without a test of its boot'
complete -c nspawn-image -n "__fish_nspawn_image_using_subcommand update" -s h -l help -d 'Print help'
