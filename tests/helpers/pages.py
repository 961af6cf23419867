"""The commands in Markdown pages."""

from __future__ import annotations

import re

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Languages of blocks that hold commands, not output.
SHELLS = ("bash", "")


def code_lines(page: str) -> list[str]:
    """The lines of a page's code: fenced blocks of a shell, and indented blocks. Continued lines are joined."""
    page = page.replace("\\\n", " ")
    fenced = [line for language, block in FENCE.findall(page) if language in SHELLS for line in block.splitlines()]
    indented = re.findall(r"^ {4,}(.*)$", FENCE.sub("", page), re.MULTILINE)
    return [" ".join(line.split("  #")[0].split()) for line in fenced + indented]
