"""Every error this package raises on purpose.

Knows nothing of engines or lm-eval. Each message is one sentence that says what was given, what is allowed and
what to do next; the command lines print it and exit with its ``exit_code`` (``_autoload`` for lm_eval, ``cli`` for
aft).

    AFTError
    ├── ConfigError        a model argument or an option is wrong
    ├── ChatError          a context cannot be read as a chat, or has a shape we do not support
    ├── TemplateError      a prompt template cannot be loaded or rendered
    ├── PromptTooLong      a question does not fit the model's context, even without its drafts
    ├── EngineError        an engine cannot be loaded, or stopped working
    ├── StoreError         the draft store cannot be used
    ├── RecordError        traces, results or data files cannot be read or written
    ├── JudgeError         a judge cannot be reached, or judgements are missing
    └── RunStopped         the user or the system ended a run; what it had finished is kept
"""


class AFTError(Exception):
    """Base of all errors below: its text is meant for the user, as it stands.

    Attributes:
        exit_code: Of a command that ends with it.
    """

    exit_code = 2


class ConfigError(AFTError):
    """A model argument or an option is unknown, of the wrong type, out of range or contradicts another."""


class ChatError(AFTError):
    """A context cannot be read as a chat, or ends in a way that cannot be answered."""


class TemplateError(AFTError):
    """A prompt template cannot be loaded or rendered."""


class PromptTooLong(AFTError):
    """The question and the tokens asked for do not fit the context, even with every draft cut to nothing."""


class EngineError(AFTError):
    """An engine cannot be loaded, or stopped working while it ran."""


class StoreError(AFTError):
    """The draft store is foreign, newer, damaged, locked or cannot be written."""


class RecordError(AFTError):
    """A trace, a results file or a data file cannot be read or written."""


class JudgeError(AFTError):
    """A judge cannot be reached, or judgements are missing."""


class RunStopped(AFTError):
    """SIGINT or SIGTERM ended a run: the shell's exit code for that signal, and how to go on."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
