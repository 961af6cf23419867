"""What a command of ``aft`` prints, and the sentence with which it refuses."""

from __future__ import annotations

from click.testing import CliRunner

from lm_eval_aft.cli import aft
from lm_eval_aft.core.errors import AFTError


def output_of(*words: object) -> str:
    """The output of a command that ends with exit code 0."""
    done = CliRunner().invoke(aft, [*map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def refusal_of(*words: object) -> str:
    """The sentence of a command that ends with exit code 2."""
    done = CliRunner().invoke(aft, [*map(str, words)])
    assert isinstance(done.exception, AFTError), done.output
    assert done.exception.exit_code == 2
    assert "\n" not in str(done.exception)
    return str(done.exception)
