"""``aft completion``: what bash, zsh and fish offer. A shell that is not installed is skipped."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from lm_eval_aft.cli import aft

BASH = """
eval "$(aft completion bash)"
COMP_WORDS=({words}) COMP_CWORD={place}
_aft_completion aft
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
# zsh completes in a terminal alone, so what the script hands to zsh is printed instead.
ZSH = """
compdef() {{ :; }}
_describe() {{ local -a rows; rows=("${{(@P)3}}"); print -l -- "${{rows[@]}}"; }}
compadd() {{ print -l -- "${{(@P)argv[-1]}}"; }}
_path_files() {{ print -l -- *; }}
eval "$(aft completion zsh)"
words=({words}) CURRENT=$(({place} + 1))
_aft_completion
"""
FISH = """
aft completion fish | source
complete --do-complete "{line}"
"""


def offered(shell: str, line: str, folder: Path) -> set[str]:
    """What a shell offers for the last word of a command line, without descriptions."""
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    words = line.split(" ")
    script = {"bash": BASH, "zsh": ZSH, "fish": FISH}[shell]
    quoted = " ".join(f'"{word}"' for word in words)
    script = script.format(words=quoted, place=len(words) - 1, line=line)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    process = subprocess.run(
        [program, "-c", script],
        cwd=folder,
        env={**os.environ, "PATH": path, "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert not process.stderr, process.stderr
    return {row.partition("\t")[0].partition(":")[0] for row in process.stdout.splitlines() if row}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_offers_commands_options_and_values(tmp_path: Path, shell: str):
    assert offered(shell, "aft co", tmp_path) == {"compare", "completion"}
    assert offered(shell, "aft report --model", tmp_path) == {"--model-card"}
    assert offered(shell, "aft export --format p", tmp_path) == {"parquet"}


def test_the_list_of_commands_imports_none_of_them():
    code = (
        "import sys, click; from lm_eval_aft.cli import aft; "
        "names = [item.value for item in aft.shell_complete(click.Context(aft), 'r')]; "
        "print(names, 'lm_eval_aft.cli.report' in sys.modules, 'torch' in sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout == "['report'] False False\n"


def test_another_shell_is_refused_with_the_names():
    done = CliRunner().invoke(aft, ["completion", "powershell"])
    assert done.exit_code == 2
    assert "'bash', 'zsh', 'fish'" in done.output
