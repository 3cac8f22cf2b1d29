# shellcheck shell=bash
# What the scripts of this folder share. To be sourced from the project's root; `finish` is theirs.
# shellcheck disable=SC2034  # used by those that source it
python=.venv/bin/python
work=$(mktemp -d)

say() { printf '\n== %s\n' "$*"; }
cannot() { printf 'not tried: %s\n' "$*" >&2; exit 77; }

begin() {
    trap finish EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    export OMP_NUM_THREADS=1
    [ -x "$python" ] || make env
}

processes_with() { # NAME=VALUE, which they have in their environment
    local environment
    for environment in /proc/[0-9]*/environ; do
        if grep -qszxF "$1" "$environment"; then
            environment=${environment#/proc/}
            echo "${environment%/environ}"
        fi
    done
}

none_with() { [ -z "$(processes_with "$1")" ]; }

end_processes_with() { # NAME=VALUE: not 0 if some are left
    local signal pids
    for signal in TERM KILL; do
        mapfile -t pids < <(processes_with "$1")
        [ ${#pids[@]} -gt 0 ] || break
        kill -s "$signal" "${pids[@]}" 2> /dev/null || true
        within 10 none_with "$1" || true
    done
    none_with "$1"
}

within() { # SECONDS COMMAND...: until the command succeeds
    local last=$((SECONDS + $1))
    shift
    until "$@" > /dev/null 2>&1; do
        [ "$SECONDS" -lt "$last" ] || return 1
        sleep 0.2
    done
}
