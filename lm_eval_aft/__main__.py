"""``python -m lm_eval_aft ...``: lm-eval's own command line, with our model and tasks registered first.

Use it if start-up files are switched off or banned. All options are lm-eval's.
"""

import sys

from lm_eval_aft import _autoload
from lm_eval_aft.core.errors import AFTError
from lm_eval_aft.core.hangup import STDERR, STDOUT, outlive_readers
from lm_eval_aft.core.stops import stoppable, take_signals
from lm_eval_aft.core.terminal import output_guard


def main() -> None:
    """Register, then run lm-eval. An error of ours is printed as one sentence and decides the exit code."""
    take_signals()
    outlive_readers(STDOUT, STDERR)
    try:
        with stoppable():
            _autoload.register()
            from lm_eval.__main__ import cli_evaluate

            with output_guard():
                cli_evaluate()
    except AFTError as error:
        _autoload.print_error(error)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
