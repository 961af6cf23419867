"""Runs a command: each error is one sentence, and the exit code says how the command ended."""

from __future__ import annotations

import errno
import io
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import click

from lm_eval_aft import _autoload
from lm_eval_aft.core.arguments import refuse_secrets
from lm_eval_aft.core.errors import RESUMES, AFTError, RunStopped, stop_sentence
from lm_eval_aft.core.hangup import STDERR, outlive_readers
from lm_eval_aft.core.stops import stoppable, take_signals
from lm_eval_aft.core.terminal import note, output_guard


def run(command: click.Command, prog_name: str, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and end the program; see ``run_program``.

    Args:
        command: The command.
        prog_name: What its help calls it.
        arguments: Its arguments; those of the program by default.
    """
    run_program(lambda: run_guarded(command.main, arguments, prog_name=prog_name))


def run_program(main: Callable[[], int]) -> NoReturn:
    """Run a program and end it. An error of ours becomes one sentence on stderr and the error's exit code.

    So does a signal; see ``core.stops``.

    Args:
        main: The program. It returns its exit code.
    """
    take_signals()
    outlive_readers(STDERR)
    try:
        with stoppable():
            sys.exit(main())
    except AFTError as error:
        _autoload.print_error(error)
        sys.exit(error.exit_code)


def run_guarded(main: Callable[..., Any], arguments: Sequence[str] | None, **settings: Any) -> NoReturn:
    """Call the ``main`` of a command as click does, but show all that click says through ``core.terminal``.

    Args:
        main: The method ``main`` of a click command.
        arguments: The arguments of the command; those of the program by default.
        **settings: See ``click.Command.main``.

    Raises:
        SystemExit: When the command ends.
        AFTError: If an argument is a key, or the command raises an error of ours.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    with output_guard():
        refuse_secrets(words, "the command line")
        try:
            code = main(words, standalone_mode=False, **settings)
            if code == 0 and sys.stdout is None:
                # Only --help and --version return a code. click prints nothing if stdout is closed.
                raise OSError(errno.EBADF, "stdout is closed")
        except click.ClickException as error:
            _show_usage_error(error)
            code = error.exit_code
        except click.Abort as abort:
            # click raises it for a KeyboardInterrupt, which only a program without our handlers gets.
            sentence = stop_sentence(signal.SIGINT, RESUMES)
            raise RunStopped(sentence, 128 + signal.SIGINT) from abort
        except SystemExit as end:
            # click ends a command whose pipe is closed itself, with 1.
            if isinstance(end.__context__, BrokenPipeError):
                raise end.__context__ from None
            raise
    sys.exit(code if isinstance(code, int) else 0)


def _show_usage_error(error: click.ClickException) -> None:
    """Show what click says of wrong arguments, which may hold anything, line by line."""
    lines = io.StringIO()
    error.show(lines)
    for line in lines.getvalue().splitlines():
        note(line)
