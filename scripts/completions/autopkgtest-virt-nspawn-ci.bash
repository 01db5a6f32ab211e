_autopkgtest__virt__nspawn__ci() {
    local i cur prev opts cmd
    COMPREPLY=()
    if [[ "${BASH_VERSINFO[0]}" -ge 4 ]]; then
        cur="$2"
    else
        cur="${COMP_WORDS[COMP_CWORD]}"
    fi
    prev="$3"
    cmd=""
    opts=""

    for i in "${COMP_WORDS[@]:0:COMP_CWORD}"
    do
        case "${cmd},${i}" in
            ",$1")
                cmd="autopkgtest__virt__nspawn__ci"
                ;;
            *)
                ;;
        esac
    done

    case "${cmd}" in
        autopkgtest__virt__nspawn__ci)
            opts="-h --help"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 1 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
    esac
}

if [[ "${BASH_VERSINFO[0]}" -eq 4 && "${BASH_VERSINFO[1]}" -ge 4 || "${BASH_VERSINFO[0]}" -gt 4 ]]; then
    complete -F _autopkgtest__virt__nspawn__ci -o nosort -o bashdefault -o default autopkgtest-virt-nspawn-ci
else
    complete -F _autopkgtest__virt__nspawn__ci -o bashdefault -o default autopkgtest-virt-nspawn-ci
fi
