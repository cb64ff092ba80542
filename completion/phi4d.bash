# bash completion of phi4d: phi4d itself knows the answers (phi4d/cli/completing.py)

_phi4d() {
    local current=${COMP_WORDS[COMP_CWORD]} word meaning
    # what stands before the last = or : is a word of its own to readline
    [[ $current == [=:] ]] && current=
    local line=${COMP_LINE:0:COMP_POINT}
    local typed=${line##*[[:space:]]}
    local before=${typed%"${typed##*[=:]}"}
    COMPREPLY=()
    while IFS=$'\t' read -r word meaning; do
        case $word in
            :files)
                compopt -o filenames 2>/dev/null
                mapfile -t -O ${#COMPREPLY[@]} COMPREPLY < <(compgen -f -- "$current")
                ;;
            :folders)
                compopt -o filenames 2>/dev/null
                mapfile -t -O ${#COMPREPLY[@]} COMPREPLY < <(compgen -d -- "$current")
                ;;
            *)
                [[ $word == *= ]] && compopt -o nospace 2>/dev/null
                COMPREPLY+=("${word#"$before"}")
                ;;
        esac
    done < <(_PHI4D_COMPLETE=$line "${COMP_WORDS[0]}" 2>/dev/null)
}

complete -F _phi4d phi4d
