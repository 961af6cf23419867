"""The type of every option and argument that is a path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lm_eval_aft.core.paths import check_path


class CheckedPath(click.Path):
    """A path that a file can have; see ``check_path``. The value is a ``Path``."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Check the text that the command line gives.

        Raises:
            ConfigError: If no file can have this path.
        """
        name = "a file" if param is None else param.make_metavar(ctx or click.Context(click.Command(None)))
        if isinstance(param, click.Option):
            name = param.opts[0]
        return Path(check_path(name, str(value)))


PATH = CheckedPath()
