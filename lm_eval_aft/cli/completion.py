"""``aft completion``: the script by which a shell completes commands, options and files."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.terminal import show

SHELLS = ("bash", "zsh", "fish")
PROGRAM = "aft"
# The variable by which the script asks click for completions.
VARIABLE = "_AFT_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that completes aft in a shell.

    Add the line eval "$(aft completion bash)" to ~/.bashrc, or the same line for zsh to ~/.zshrc after compinit. For
    fish, write the script to ~/.config/fish/completions/aft.fish.
    """
    complete = get_completion_class(shell)
    if complete is None:
        raise ConfigError(f"this version of click completes nothing in {shell}: install click 8.2 or newer.")
    show(complete(ctx.find_root().command, {}, PROGRAM, VARIABLE).source())
