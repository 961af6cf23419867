"""Every command of the README and of the first pages runs, or is checked against its help, as ``TABLE`` says why.

``TABLE`` has an entry for each command and no other entry. Commands run in one folder and in the order of the pages,
as a reader would type them, with these changes:

- the names of the user's own files, and the limit;
- gsm8k, whose questions come from a local file, because no hub is used;
- the engine of the sweep, whose ten points would take a minute with a model.

Most programs run in forks of a Python that has imported everything; those in ``STARTED`` start as a reader starts them.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from click.testing import CliRunner

from helpers.pages import FENCE, code_lines
from helpers.paths import ROOT
from helpers.tiny_models import save_tiny
from helpers.warm import WarmPython
from lm_eval_aft.cli import aft

PAGE_NAMES = "install reference/arguments tutorial evaluate tasks reuse fleet cost publish results paper"
PAGES = ("README.md", *(f"docs/{name}.md" for name in PAGE_NAMES.split()))
PROGRAMS = "accelerate|aft|bash|cat|curl|docker|export|git|lm_eval|make|pip|python3?|serve|torchrun|vllm"
PROGRAM_FOLDER = Path(sys.executable).parent
TEMPLATE = "{% block draft %}{% endblock %}{% block aggregate %}{{ drafts | join(' / ') }}{% endblock %}"
SMALL = "--include_path tasks --limit 1"


@dataclass(frozen=True)
class Run:
    """A command that is run.

    Attributes:
        output: Part of what it prints.
        change: Parts of the command, and what replaces them.
        more: What is added to the command.
    """

    output: str
    change: Mapping[str, str] = field(default_factory=dict)
    more: str = ""


@dataclass(frozen=True)
class Check:
    """A command that is not run, with the reason. The command ``help_of`` must print its options."""

    reason: str
    help_of: str


INSTALLS = "it downloads packages for minutes: tests/test_install.py installs the package"
FIGURES = "it takes minutes on a real model: tests/benchmarks/test_benchmarks.py runs the scripts on tiny ones"

TABLE: dict[str, Run | Check] = {
    "make demo": Check(INSTALLS + ", tests/cli/test_demo.py runs the demo", "make -n demo"),
    "make test": Check("it would run this test", "make -n test"),
    "make test-lm-eval": Check("it takes many minutes", "make -n test-lm-eval"),
    "make demo-chat": Check("it downloads a real checkpoint", "make -n demo-chat"),
    "make checkpoints": Check("it takes hours: tests/trainers/test_family.py runs it small", "make -n checkpoints"),
    "git clone https://github.com/OWNER/lm_eval_aft": Check("it needs a network", "git --version"),
    "pip install .": Check(INSTALLS, "pip install --help"),
    "lm_eval --model aft --model_args pretrained=MODEL,k=5,layers=2,record=out/traces --tasks gsm8k "
    "--apply_chat_template --batch_size auto --output_path out --log_samples": Run("|gsm8k|", more=SMALL),
    "cat $(python -c \"import sysconfig; print(sysconfig.get_path('purelib'))\")/lm_eval_aft.pth": Run(
        "lm_eval_aft._autoload.install()"
    ),
    "python -m lm_eval_aft --model aft ...": Run(
        "|gsm8k|", {"...": "--model_args engine=scripted,k=2,layers=1 --tasks gsm8k --apply_chat_template"}, SMALL
    ),
    "python benchmarks/startup.py": Check(
        "two hundred starts take a minute: tests/test_autoload.py runs it with fewer",
        "python benchmarks/startup.py --help",
    ),
    "lm_eval --model aft --model_args pretrained=SMOLLM2,k=5,layers=2,dtype=bfloat16,record=out/smollm2/traces,"
    "max_gen_toks=256 --tasks gsm8k --limit 8 --device cpu --apply_chat_template --batch_size auto "
    "--output_path out/smollm2 --log_samples": Run(
        "|gsm8k|", {"SMOLLM2": "MODEL", "--limit 8": "--limit 2"}, "--include_path tasks"
    ),
    "aft votes out/smollm2": Run("gsm8k, k=5, layers=2: 2 questions"),
    "aft diagnose out/smollm2": Run("answers repeat a draft word for word"),
    "aft report out/smollm2 --html page.html": Run("The page is in page.html."),
    "lm_eval --model aft ...": Run(
        "|gsm8k|", {"...": "--model_args engine=scripted,k=2,layers=1 --tasks gsm8k --apply_chat_template"}, SMALL
    ),
    "lm_eval --model aft --model_args pretrained=bundled:aft,k=3,layers=1,record=out/aft/traces --tasks aft_arith "
    "--limit 400 --device cpu --apply_chat_template --batch_size auto --output_path out/aft --log_samples": Run(
        "|aft_arith|", {"--limit 400": "--limit 4"}
    ),
    "lm_eval --model aft --model_args pretrained=bundled:sft,layers=0,record=out/sft/traces --tasks aft_arith "
    "--limit 400 --device cpu --apply_chat_template --batch_size auto --output_path out/sft --log_samples": Run(
        "|aft_arith|", {"--limit 400": "--limit 4"}
    ),
    "aft compare out/sft out/aft": Run("bundled:aft (3, 1)"),
    "aft report out/sft out/aft --html page.html": Run("The page is in page.html."),
    "lm_eval --model aft --model_args pretrained=MODEL,peft=ADAPTER,k=5,layers=2,record=out/lora/traces --tasks gsm8k "
    "--apply_chat_template --batch_size auto --output_path out/lora --log_samples": Run("|gsm8k|", more=SMALL),
    'lm_eval --model aft --model_args \'{"pretrained":"MODEL","model_kwargs":{"attn_implementation":"eager"}}\' '
    "--tasks gsm8k --apply_chat_template": Run("|gsm8k|", more=SMALL),
    "aft completion fish > ~/.config/fish/completions/aft.fish": Run(
        "complete --no-files --command aft", {"~/.config/fish/completions/aft.fish": "aft.fish"}, "&& cat aft.fish"
    ),
    **{
        line: Check(INSTALLS, help_of)
        for line, help_of in (
            ("pip install . --extra-index-url https://download.pytorch.org/whl/cpu", "pip install --help"),
            ("make TORCH=cpu demo", "make -n TORCH=cpu demo"),
            ("make TORCH=cpu test", "make -n TORCH=cpu test"),
        )
    },
    **{
        f"docker build {options} .": Check(
            "it needs Docker: tests/test_release.py checks the files", "cat Dockerfile.cuda"
        )
        for options in (
            "--build-arg VERSION=0.1.0 --tag lm_eval_aft",
            "--file Dockerfile.cuda --build-arg VERSION=0.1.0 --tag lm_eval_aft:cuda",
        )
    },
    "pip install -e .": Check(INSTALLS, "pip install --help"),
    "pip install 'ray[llm]'": Check("it needs GPUs and downloads gigabytes", "pip install --help"),
    "pip install '.[vllm,ifeval]'": Check(INSTALLS, "pip install --help"),
    "pip uninstall lm_eval_aft": Check("tests/test_install.py uninstalls the package", "pip uninstall --help"),
    "aft grade OUT": Check("it needs a task's data: tests/cli/test_grade.py has some", "aft grade --help"),
    **{
        f"aft watch {place}": Check("it shows runs until they end: tests/cli/test_watch.py", "aft watch --help")
        for place in ("out/traces", "FILE")
    },
    "aft judge mt_bench": Check("needs a judge: tests/judging/test_mt_bench.py has one", "aft judge mt_bench --help"),
    "aft judge alpaca_eval": Check(
        "needs a judge: tests/judging/test_alpaca_judge.py has one", "aft judge alpaca_eval --help"
    ),
    "python -m trainers.family train FAMILY --seed N": Check(
        "it trains for an hour: tests/trainers/test_family.py runs it small", "python -m trainers.family train --help"
    ),
    "python benchmarks/family.py FAMILY WORK --limit 4000 --ablations 4000 --seed N": Check(
        FIGURES, "python benchmarks/family.py --help"
    ),
    "python benchmarks/figures.py": Check("tests/benchmarks has the drawing", "python benchmarks/figures.py --help"),
    "python benchmarks/opponents.py FAMILY WORK --limit 1000": Check(FIGURES, "python benchmarks/opponents.py --help"),
    "python benchmarks/pretrained.py SMOLLM2 WORK --problems arith --bf16 --set numbers=3 --set warm=400"
    " --set queries=640 --set epochs=1 --set k=3 --set limit=300 --set rl_texts=32 --set rl_steps=40"
    " --set reward_steps=60": Check(FIGURES, "python benchmarks/pretrained.py --help"),
    "python benchmarks/pretrained.py SMOLLM2 WORK --problems ifeval --questions input_data.jsonl --bf16"
    " --set queries=800 --set epochs=1 --set k=3 --set hidden=1 --set generated=192 --set rl_texts=32"
    " --set rl_steps=12 --set reward_steps=0": Check(FIGURES, "python benchmarks/pretrained.py --help"),
    "python benchmarks/rewards.py WORK --against OTHER/aggregate__5__2_ OTHER/best_of_10_by_a_reward_model": Check(
        FIGURES, "python benchmarks/rewards.py --help"
    ),
    "python benchmarks/strategies.py WORK --limit 4000 --reward-queries 1500": Check(
        FIGURES, "python benchmarks/strategies.py --help"
    ),
    "python benchmarks/family_seeds.py WORK --markdown": Check(FIGURES, "python benchmarks/family_seeds.py --help"),
    "aft sweep --model_args pretrained=MODEL --k 1,3,5 --layers 0,1,2,3 --tasks gsm8k --apply_chat_template "
    "--output_path out/sweep": Run(
        "33 generations a question instead of 66", {"pretrained=MODEL": "engine=scripted"}, SMALL
    ),
    "lm_eval --model aft --model_args pretrained=MODEL,k=3,layers=1,max_gen_toks=256,record=out/try/traces "
    "--tasks aft_gsm8k --limit 20 --apply_chat_template --batch_size auto --output_path out/try --log_samples": Run(
        "|gsm8k|", {"aft_gsm8k": "gsm8k", "--limit 20": "--limit 2"}, "--include_path tasks"
    ),
    "aft votes out/try": Run("gsm8k, k=3, layers=1: 2 questions"),
    "aft diagnose out/try": Run("answers repeat a draft word for word"),
    "lm_eval --model aft --model_args pretrained=SFT,layers=0,record=out/baseline/traces --tasks gsm8k "
    "--apply_chat_template --batch_size auto --output_path out/baseline --log_samples": Run(
        "|gsm8k|", {"SFT": "MODEL"}, SMALL
    ),
    "aft report out/sft out/aft --model-card --baseline out/sft > card.md": Run("model-index:", more="&& cat card.md"),
    "aft report out/aft --eval-results export/model --benchmark aft_arith=OWNER/DATASET:default": Run(
        "The scores are in export/model/.eval_results/bundled_aft__3__1_.yaml."
    ),
    "aft export out/sft out/aft --output export/tables": Run("Written: export/tables/drafts.parquet"),
    "aft export out/sft out/aft --output export/records --every-eval-ever": Run("Written: export/records/data/"),
    "aft compare out/baseline out/lora": Run("gsm8k, filter flexible-extract: MODEL+ADAPTER (5, 2)"),
    "aft report out/baseline out/lora --html page.html": Run("The page is in page.html."),
    "aft train KIND --config FILE --merge": Check(
        "training takes minutes: tests/trainers has small ones", "aft train --help"
    ),
    "aft report out/try": Run("MODEL"),
    **{
        f"lm_eval --model aft --model_args pretrained=MODEL,k=5,layers=2,record=out/shard{n},shard={n}/2 --tasks gsm8k "
        "--apply_chat_template": Run(f"Shard {n}/2 is done and has no score", more="--include_path tasks --limit 4")
        for n in (1, 2)
    },
    "lm_eval --model aft --model_args "
    "'engine=api,base_url=http://a:8000/v1|http://b:8000/v1,model=NAME,k=5,layers=2,record=out/traces' "
    "--tasks gsm8k --apply_chat_template --output_path out": Check(
        "it needs two servers: tests/engines/test_api_servers.py has three", "lm_eval run --help"
    ),
    "lm_eval --model aft --model_args engine=api,base_url=http://127.0.0.1:8000/v1,model=NAME,price_in=0.15,price_out=0.6,"
    "max_cost=20,k=5,layers=2,record=out/traces --tasks gsm8k --apply_chat_template --output_path out": Check(
        "it needs a server: tests/inference/test_budget.py has one", "lm_eval run --help"
    ),
    "aft report OUT --price-in 0.15 --price-out 0.6": Run("cost", {"OUT": "out/try"}),
    **{
        f"bash docs/examples/vllm_fleet.sh {role} MODEL FIRST_IP": Check(
            "it needs GPUs: tests/test_examples.py has vLLM parse it", "bash -n docs/examples/vllm_fleet.sh"
        )
        for role in ("first", "second")
    },
    "serve run docs/examples/ray_serve.yaml": Check(
        "it needs GPUs: tests/test_examples.py has Ray read it", "cat docs/examples/ray_serve.yaml"
    ),
    "aft merge out/shard1/drafts.sqlite out/shard2/drafts.sqlite --output out/all.sqlite": Run(
        "44 generations of 2 stores, 0 in several"
    ),
    "lm_eval --model aft --model_args pretrained=MODEL,k=5,layers=2,record=out/joined/traces,cache=out/all.sqlite "
    "--tasks gsm8k --apply_chat_template --output_path out/joined --log_samples": Run(
        "|gsm8k|", more="--include_path tasks --limit 4"
    ),
    "python benchmarks/bare.py": Check(FIGURES, "python benchmarks/bare.py --help"),
    "aft cache info FILE": Run("generations", {"FILE": "out/traces/drafts.sqlite"}),
    "aft cache verify FILE": Run("0 damaged", {"FILE": "out/traces/drafts.sqlite"}),
    "python benchmarks/invariance.py --pretrained MODEL --questions test.jsonl --max_tokens 48": Check(
        FIGURES, "python benchmarks/invariance.py --help"
    ),
    "python benchmarks/prefill.py --pretrained MODEL --questions test.jsonl": Check(
        FIGURES, "python benchmarks/prefill.py --help"
    ),
    "python benchmarks/overhead.py --questions test.jsonl --turns 1": Check(
        FIGURES, "python benchmarks/overhead.py --help"
    ),
    "aft template check FILE.j2": Run("aggregate prompt"),
    "aft template check released.j2": Run("aggregate prompt", {"released.j2": "FILE.j2"}),
    "lm_eval --model aft --tasks aft_gsm8k,aft_ifeval,aft_mt_bench,aft_alpaca_eval --apply_chat_template --model_args "
    "pretrained=linzw/Llama-AFT-On-Policy,engine=vllm,template=released.j2,k=5,layers=2,temperature=0.7,top_p=0.95,"
    "final_temperature=0.7,final_top_p=1,max_gen_toks=4096,record=out/llama-on/traces "
    "--output_path out/llama-on --log_samples": Check("it needs a GPU and an 8B model", "lm_eval run --help"),
    "aft judge mt_bench out/llama-on --help": Run("Usage: aft judge mt_bench"),
    "aft report out/llama-on out/llama-on-0 --html llama.html": Check(
        "it reads runs of an 8B model", "aft report --help"
    ),
    **{
        f"aft data {name}": Check("tests/trainers runs it on a tiny model", f"aft data {name} --help")
        for name in ("drafts", "select", "aggregate")
    },
    "aft compare out/llama-on-0 out/llama-on": Check("it reads runs of an 8B model", "aft compare --help"),
}


# A command of each program.
STARTED = {
    "lm_eval --model aft --model_args pretrained=MODEL,k=5,layers=2,record=out/traces --tasks gsm8k "
    "--apply_chat_template --batch_size auto --output_path out --log_samples",
    "python -m lm_eval_aft --model aft ...",
    "aft compare out/sft out/aft",
    "cat $(python -c \"import sysconfig; print(sysconfig.get_path('purelib'))\")/lm_eval_aft.pth",
}


def page_commands() -> list[str]:
    """The commands of the pages, each once: code blocks first, then inline code with an argument."""
    found: dict[str, None] = {}
    for name in PAGES:
        text = (ROOT / name).read_text(encoding="utf-8")
        blocks = [line for line in code_lines(text) if re.match(rf"(?:{PROGRAMS}) ", line)]
        inline = re.findall(rf"(?<!`)`((?:{PROGRAMS})\s[^`]+)`(?!`)", FENCE.sub("", text))
        found |= dict.fromkeys([*blocks, *(" ".join(command.split()) for command in inline)])
    # The name of an aft command alone: tests/test_readme.py shows the help of each.
    return [command for command in found if not re.fullmatch(r"aft \w+", command)]


def commands(kind: type) -> list[str]:
    return [command for command in page_commands() if isinstance(TABLE.get(command), kind)]


def environment(folder: Path, programs: Path = PROGRAM_FOLDER) -> dict[str, str]:
    """A reader's environment: the programs of a folder and of this Python, no hub, and none of our switches."""
    path = os.pathsep.join([str(programs), str(PROGRAM_FOLDER), os.environ["PATH"]])
    changed = {"PATH": path, "HF_HUB_OFFLINE": "1"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LM_EVAL_AFT")}
    return {**kept, **changed, "HF_DATASETS_CACHE": str(folder / "datasets"), "COLUMNS": "120"}


def save_adapter(model: Path, folder: Path) -> None:
    """A LoRA adapter for the model, as peft saves one."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        # peft 0.21 reads an attribute that transformers deprecates.
        warnings.simplefilter("ignore", FutureWarning)
        adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model), LoraConfig(target_modules=["q_proj"]))
        adapted.save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reader's folder: MODEL and its ADAPTER, a template, and a gsm8k of nine local questions."""
    from lm_eval import tasks

    folder = tmp_path_factory.mktemp("reader")
    save_tiny(folder / "MODEL")
    # Half of all tokens end a text, so that no text becomes long.
    generation = {"eos_token_id": list(range(3, 130)), "pad_token_id": 0}
    (folder / "MODEL" / "generation_config.json").write_text(json.dumps(generation))
    save_adapter(folder / "MODEL", folder / "ADAPTER")
    (folder / "FILE.j2").write_text(TEMPLATE)
    rows = [
        {"question": f"{n} pens cost {n} coins each. What do all cost?", "answer": f"#### {n * n}"} for n in range(9)
    ]
    (folder / "tasks").mkdir()
    (folder / "tasks" / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    files = {split: str(folder / "tasks" / "rows.jsonl") for split in ("train", "test")}
    task = {"include": str(Path(tasks.__file__).parent / "gsm8k" / "gsm8k.yaml"), "task": "gsm8k"}
    task |= {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
    (folder / "tasks" / "gsm8k.yaml").write_text(json.dumps(task))
    return folder


@pytest.fixture(scope="module")
def warm_programs(warm: WarmPython, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs that run in forks."""
    return warm.programs(tmp_path_factory.mktemp("warm"), "aft", "lm_eval", "python")


@pytest.fixture(scope="module")
def help_texts() -> dict[str, str]:
    """What each help has printed so far. Several commands of the pages share one."""
    return {}


def test_every_command_of_the_pages_is_in_the_table():
    assert set(page_commands()) == set(TABLE)
    assert set(TABLE) >= STARTED


def changed_command(command: str, entry: Run) -> str:
    for part, replacement in entry.change.items():
        assert command.count(part) == 1, part
        command = command.replace(part, replacement)
    return f"{command} {entry.more}"


@pytest.mark.long
@pytest.mark.parametrize("command", commands(Run), ids=lambda command: command[:40])
def test_the_command_runs(folder: Path, warm_programs: Path, command: str):
    run_command(folder, PROGRAM_FOLDER if command in STARTED else warm_programs, command)


def test_the_commands_of_the_bundled_checkpoints_run(tmp_path: Path, warm_programs: Path):
    # They depend on no other command, and the test of all commands takes a minute.
    bundled = "lm_eval --model aft --model_args pretrained=bundled:"
    for beginning, count in ((bundled, 2), ("aft compare out/sft ", 1), ("aft report out/sft out/aft --html", 1)):
        found = [command for command in commands(Run) if command.startswith(beginning)]
        assert len(found) == count
        for command in found:
            run_command(tmp_path, warm_programs, command)


def run_command(folder: Path, programs: Path, command: str) -> None:
    """Run a command in a reader's folder, and compare what it prints with the table."""
    entry = TABLE[command]
    line, variables = changed_command(command, entry), environment(folder, programs)
    process = subprocess.run(
        ["bash", "-c", line], cwd=folder, env=variables, capture_output=True, text=True, timeout=300
    )
    output = process.stdout + process.stderr
    assert process.returncode == 0, output
    assert entry.output in output, output


@pytest.mark.parametrize(
    "command",
    [
        # Their imports take seconds.
        pytest.param(command, marks=pytest.mark.long) if TABLE[command].help_of.startswith("python ") else command
        for command in commands(Check)
    ],
    ids=lambda command: command[:40],
)
def test_the_command_exists_with_its_options(warm_programs: Path, help_texts: dict[str, str], command: str):
    entry = TABLE[command]
    assert entry.reason
    if entry.help_of not in help_texts:
        help_texts[entry.help_of] = help_text(entry.help_of, warm_programs)
    options = {word.split("=")[0] for word in command.split() if word.startswith("--")}
    assert all(re.search(rf"{option}\b", help_texts[entry.help_of]) for option in options), options


def help_text(command: str, programs: Path) -> str:
    words, variables = shlex.split(command), environment(programs, programs)
    if words[0] == "aft":
        # tests/test_install.py starts the program.
        result = CliRunner().invoke(aft, words[1:], env={"COLUMNS": "120"})
        assert result.exit_code == 0, result.output
        return result.output
    if (programs / words[0]).exists():
        words[0] = str(programs / words[0])
    process = subprocess.run(words, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    return process.stdout
