# Sourced by the other scripts: makes .venv beside the project and installs a requirements file into it, once.
# usage: . scripts/environment.sh requirements.txt
cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_python() {
    for name in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python3.10; do
        if [ -n "$name" ] && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    echo "error: no Python 3.10 or newer found; install one, or name it: PYTHON=/path/to/python3 bash $0" >&2
    exit 2
}

install_requirements() {
    local wanted stamp=.venv/.installed-$1
    wanted=$(cat requirements*.txt | cksum)
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        return
    fi
    [ -x .venv/bin/python ] || "$(find_python)" -m venv .venv
    echo "installing $1 into .venv (several GB with the CUDA build of torch; only the first time)"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$1" 2> >(grep -v 'is ignored: it is neither' >&2)
    echo "$wanted" > "$stamp"
}

install_requirements "$1"
