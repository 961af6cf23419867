"""``python -m lm_eval_aft ...``: lm-eval's own command line, with our model and tasks registered first.

The documented route where start-up files are switched off or banned. Knows no option of its own: everything after
``python -m lm_eval_aft`` is lm-eval's.
"""

import sys

from lm_eval_aft import _autoload
from lm_eval_aft.core.errors import AFTError


def main() -> None:
    """Register, then hand over to lm-eval; an error of ours is one sentence and its exit code."""
    try:
        _autoload.register()
        from lm_eval.__main__ import cli_evaluate

        cli_evaluate()
    except AFTError as error:
        _autoload.print_error(error)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
