# Sourced by up, test and check: gives them $root and $python, the interpreter of a virtual environment .venv at the
# root, which is made where there is none and brought up to date when what the project asks for has changed.
set -euo pipefail

root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"
python="$root/.venv/bin/python"

fail() {
    printf '%s\n' "$@" >&2
    exit 1
}

is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if is_new_enough "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    fail "Python 3.11 or newer is needed; ${PYTHON:-python3} is $("${PYTHON:-python3}" --version 2>/dev/null || echo missing)." \
        "Install one, or name it: PYTHON=/path/to/python3 $0"
}

make_venv() {
    local base
    base="$(find_python)"
    "$base" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$base cannot make virtual environments: the packages venv and ensurepip are missing." \
            "On Debian and Ubuntu: apt install $("$base" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
    "$base" -m venv --clear "$root/.venv"
}

# The path and the packages' names count as well: an editable install remembers both.
wanted() {
    (cd -- "$root" && printf '%s\n' "$root" */__init__.py && cat setup.cfg pyproject.toml) | sha256sum
}

is_installed() {
    local extra
    for extra in "$@"; do
        [[ "$(cat "$root/.venv/installed-$extra" 2>/dev/null)" == "$(wanted)" ]] && return
    done
    return 1
}

install() {
    local begun="$root/.venv/installing" status=0
    # A pip that was killed leaves packages that look installed and are not: then all of it is made anew.
    if [[ -e "$begun" ]] || ! is_new_enough "$python"; then
        make_venv
    fi
    printf 'Installing what %s needs into %s\n' "${0##*/}" "$root/.venv" >&2
    : >"$begun"
    "$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip >/dev/null || status=$?
    "$python" -m pip install --quiet --disable-pip-version-check --editable "$root[$1]" || status=$?
    rm -f "$begun"
    ((status == 0)) || fail "The installation failed, as said above; $0 will try again."
    wanted >"$root/.venv/installed-$1"
}

# require EXTRA [EXTRAS THAT HOLD IT]
require() {
    is_installed "$@" && is_new_enough "$python" && return
    # One at a time. The folder itself is the lock, and it is let go before anything long-lived begins.
    exec 9<"$root"
    if ! flock -n 9; then
        printf 'Waiting for another installation to end\n' >&2
        flock -w 900 9 || fail "The other installation has not ended in 15 minutes."
    fi
    is_installed "$@" && is_new_enough "$python" || install "$1"
    exec 9<&-
}
