"""Fixtures of all tests: tiny models, an engine, and the environment that they run in."""

from __future__ import annotations

import gc
import logging
import os
import runpy
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from helpers.first_line import mark_further_cases
from helpers.paths import SHARED
from helpers.tiny_models import save_tiny, tiny_config, tiny_tokenizer
from lm_eval_aft.core.log import warn_once
from lm_eval_aft.core.stops import SIGNALS

# Imports and the collection of tests make millions of objects that stay. The collector would read them again and again.
gc.set_threshold(50_000, 20, 50)

# No test needs a hub. huggingface_hub reads this when it is imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# On a busy machine threads wait for each other longer than a tiny model computes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A hundred Pythons start here. Each compiles our packages again if the first ones may not write what they compiled.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Its sitecustomize.py runs in this process and in every Python that a test starts.
STARTUP = Path(__file__).resolve().parent / "helpers" / "startup"
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(STARTUP), os.environ.get("PYTHONPATH")]))
runpy.run_path(str(STARTUP / "sitecustomize.py"))

# A case that takes long on a busy machine is no failure.
settings.register_profile("any_speed", deadline=None)
settings.load_profile("any_speed")

# A test run in the background ignores these, for example with nohup, and so would the commands that tests start.
for interrupt, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(interrupt) == signal.SIG_IGN:
        signal.signal(interrupt, handler)

HANDLERS = {number: signal.getsignal(number) for number in SIGNALS}

SMOLLM2 = Path.home() / ".cache" / "lm_eval_aft" / "smollm2-135m-instruct"


# Files that take longest. A worker that gets one of them last would run alone.
LONGEST = (
    "test_readme_commands.py",
    "test_secrets.py",
    "test_processes.py",
    "test_page_browser.py",
    "test_train_processes.py",
    "test_install.py",
    "test_train_checkpoints.py",
    "test_train_resume.py",
    "test_train_loss.py",
    "test_plot.py",
    "test_alpaca_task.py",
    "test_stops.py",
    "test_family.py",
    "test_model.py",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the further cases of grids to ``make test-long``, and run the longest files first."""
    # pytest reads -m after this.
    mark_further_cases(items)
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(autouse=True)
def fresh_warnings() -> None:
    """Let each test see the warnings that a process logs only once."""
    warn_once.cache_clear()


@pytest.fixture(autouse=True)
def own_handlers():
    """Let each test begin with the handlers and the hook of pytest. Those of a command stay until its process ends."""
    for number, before in HANDLERS.items():
        if before is not None and signal.getsignal(number) is not before:
            signal.signal(number, before)
    hook = sys.unraisablehook
    yield
    sys.unraisablehook = hook


@pytest.fixture(autouse=True)
def logs_reach_the_root() -> None:
    """Let caplog see our log. lm-eval's command line keeps its loggers, ours among them, from the root logger.

    It also sets their level, which the demonstration raises to errors, and adds a handler. That writes to the stderr of
    the test which ran lm-eval first.
    """
    log = logging.getLogger("lm_eval")
    log.handlers.clear()
    log.propagate = True
    log.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with benchmark data beside the checkout."""
    if not (SHARED / "data").is_dir():
        pytest.skip("there is no folder shared/data beside the checkout")
    return SHARED


@pytest.fixture(scope="session")
def smollm2() -> str:
    """A real 135M chat model."""
    if not (SMOLLM2 / "config.json").is_file():
        pytest.skip("SmolLM2-135M-Instruct is not on this machine: make demo-chat fetches it")
    return str(SMOLLM2)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a tiny Llama chat model with random weights."""
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_engine(tiny: str):
    """The hf engine with the tiny model, in float32 on the CPU."""
    from lm_eval_aft.core.engine import HostArgs
    from lm_eval_aft.engines.hf.engine import HFEngine

    return HFEngine.load({"pretrained": tiny, "dtype": "float32"}, HostArgs("auto", None, "cpu"))


@pytest.fixture(scope="session")
def quick_lm_eval():
    """Omit lm-eval's description of the machine, which takes seconds a run and which no test reads."""
    patch = pytest.MonkeyPatch()
    patch.setattr("lm_eval.evaluator.add_env_info", lambda storage: None)
    yield
    patch.undo()


@pytest.fixture(scope="session")
def warm():
    """A Python that has imported everything, for programs that need a process of their own."""
    from helpers.warm import WarmPython

    python = WarmPython()
    yield python
    python.close()


@pytest.fixture(scope="session")
def reward(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a tiny reward model with random weights."""
    import torch
    from transformers import AutoModelForSequenceClassification

    folder = tmp_path_factory.mktemp("reward")
    config = tiny_config()
    config.num_labels = 1
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def punkt_tables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The only folder in which NLTK finds the tables that lm-eval's checkers of IFEval import. They are empty."""
    nltk = pytest.importorskip("nltk", reason="needs the extra ifeval")
    (tmp_path / "tokenizers/punkt_tab/english").mkdir(parents=True)
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    return tmp_path


@pytest.fixture
def quiet_transformers():
    """transformers without its log lines about configs that are small and odd."""
    import transformers

    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(before)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch):
    """A server of chat completions on 127.0.0.1, for calls without a key."""
    from helpers.fake_server import FakeServer

    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    fake = FakeServer()
    yield fake
    fake.close()


@pytest.fixture
def weighted_judge(monkeypatch: pytest.MonkeyPatch):
    """A judge on 127.0.0.1 that answers AlpacaEval's prompts with log-probabilities."""
    from helpers.fake_alpaca import weighted_reply
    from helpers.fake_judge import quick_judge

    with quick_judge(monkeypatch) as judge:
        judge.trouble = lambda number, body: weighted_reply(body)
        yield judge
