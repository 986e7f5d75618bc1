"""The command `bora completion`: a script that completes commands, settings and their choices in bash and zsh."""

from bora.commands import COMMANDS

# Hydra completes settings if COMP_LINE has its command followed by the overrides: `bora tau=…`.
SCRIPT = """\
[ -n "$ZSH_VERSION" ] && autoload -U +X bashcompinit && bashcompinit
_bora() {
    local word="${COMP_WORDS[COMP_CWORD]}" line="${COMP_LINE/ run / }"
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "%s" -- "$word"))
    elif [ "${COMP_WORDS[1]}" = run ]; then
        COMPREPLY=($(COMP_LINE="$line" COMP_POINT="${#line}" "${COMP_WORDS[0]}" run -sc query=bash 2>/dev/null))
        COMPREPLY=(${COMPREPLY[@]//*=_*/})
    fi
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -o nospace -o default -F _bora bora
"""


def main() -> None:
    """Print the script."""
    print(SCRIPT % " ".join(COMMANDS), end="")
