"""Every error that this package raises on purpose.

Each message is one sentence that says what was given, what is allowed and what to do next. Commands print the message
and exit with ``exit_code``.

    AFTError
    ├── ConfigError        a model argument or an option is wrong
    ├── ChatError          a context cannot be read as a chat, or cannot be answered
    ├── TemplateError      a prompt template cannot be loaded or rendered
    ├── PromptTooLong      a question does not fit the model's context, even without its drafts
    ├── EngineError        an engine cannot be loaded, or stopped working
    ├── StoreError         the draft store cannot be used
    ├── RecordError        traces, results or data files cannot be read or written
    ├── JudgeError         a judge cannot be reached, or judgements are missing
    ├── BudgetReached      a run reached a bound of its cost; the message says what is kept
    ├── RunStopped         a signal ended the command; the message says what is kept
    └── ShardDone          a run of a shard has answered its questions and ends before anything is scored

``Stopped`` is the signal itself, on its way to the block that knows what is kept.
"""

import signal

from lm_eval_aft.core.terminal import message

RESUMES = "finished work is kept, and the same command resumes."


class AFTError(Exception):
    """Base of all errors below. Its text is a message to the user, and may be shown as it is: see ``message``.

    Attributes:
        exit_code: Exit code of a command that ends with this error.
    """

    exit_code = 2

    def __str__(self) -> str:
        return message(super().__str__())


class ConfigError(AFTError):
    """A model argument or an option is unknown, of the wrong type, out of range or contradicts another."""


class ChatError(AFTError):
    """A context cannot be read as a chat, or ends with a message that cannot be answered."""


class TemplateError(AFTError):
    """A prompt template cannot be loaded or rendered."""


class PromptTooLong(AFTError):
    """A question and the tokens to generate do not fit the context, even with every draft cut to one token."""


class EngineError(AFTError):
    """An engine cannot be loaded, or stopped working."""


class StoreError(AFTError):
    """The draft store is another program's file, newer than this package, damaged, locked or cannot be written."""


class RecordError(AFTError):
    """A trace, a results file or a data file cannot be read or written."""


class JudgeError(AFTError):
    """A judge cannot be reached, or judgements are missing."""


class RunStopped(AFTError):
    """A signal ended the command."""

    def __init__(self, message: str, exit_code: int) -> None:
        """Make the error.

        Args:
            message: What is kept, and how to resume.
            exit_code: The shell's exit code for that signal.
        """
        super().__init__(message)
        self.exit_code = exit_code


class BudgetReached(AFTError):
    """A run reached ``max_cost`` or ``max_generated_tokens``. What is finished is kept."""


class ShardDone(AFTError):
    """A run of a shard has answered its questions. It ends here, so that a part of the questions gets no score."""

    exit_code = 0


class Stopped(BaseException):
    """A signal ends the command. It is not an Exception, so that no code in between handles it as a failure.

    Its text is a message to the user.

    Attributes:
        exit_code: The shell's exit code for the signal.
    """

    def __init__(self, number: int) -> None:
        """Make it from the signal's number."""
        super().__init__(stop_sentence(number, RESUMES))
        self.exit_code = 128 + number


def stop_sentence(number: int, kept: str) -> str:
    """The message of a command that the signal ``number`` ended; ``kept`` says what is kept and how to resume."""
    return f"stopped by {signal.Signals(number).name}; {kept}"
