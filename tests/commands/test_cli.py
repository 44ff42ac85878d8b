"""`recall` itself."""

import subprocess
import sys


def test_help_is_there_at_once():
    """It lists the commands from their files, and imports none of what makes a start slow."""
    code = "import sys; from recall_lib.commands import cli; cli.main(['--help']); "
    code += "print(sorted({'pyspark', 'torch', 'pandas', 'numpy'} & set(sys.modules)))"
    said = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert said.startswith("usage: recall <command>")
    assert said.endswith("\n[]\n")
