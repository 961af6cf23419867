"""``aft sweep``: evaluate a grid of k and layers with one loaded model and one draft store.

lm-eval runs in process, point by point from the cheapest. Each point is an ordinary lm-eval results folder with its
traces, and a point reuses what earlier points generated.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import click

from lm_eval_aft import register
from lm_eval_aft.analysis.report.leaderboard import leaderboard
from lm_eval_aft.analysis.report.tables import render
from lm_eval_aft.analysis.runs import read_entries
from lm_eval_aft.bundled import choose_checkpoint
from lm_eval_aft.cli.evaluation import evaluate
from lm_eval_aft.cli.numbers import Real
from lm_eval_aft.cli.paths import PATH
from lm_eval_aft.core.arguments import integer, key_values, refuse_secrets, widths
from lm_eval_aft.core.config import BUDGETS, AFTConfig
from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.core.errors import ConfigError, RecordError
from lm_eval_aft.core.files import read_bytes, write_text
from lm_eval_aft.core.jsonl import parse_json
from lm_eval_aft.core.secrets import public
from lm_eval_aft.core.terminal import note, show
from lm_eval_aft.engines.registry import load_engine
from lm_eval_aft.inference.checkpoint import choose_template
from lm_eval_aft.inference.sweep_plan import K, Point, SweepPlan, grid, plans_of, shown_k, widths_of
from lm_eval_aft.storage.draft_store import open_store
from lm_eval_aft.storage.results import read_run

# Model arguments that decide no text.
DECIDES_NO_TEXT = ("record", "cache", "batch_tokens", "look_ahead", *BUDGETS)
DONE = "point.json"
SUMMARY = "summary.json"


@dataclass(frozen=True, slots=True)
class Options:
    """What every point shares, as lm-eval's ``simple_evaluate`` takes it."""

    tasks: tuple[str, ...]
    limit: float | None = None
    num_fewshot: int | None = None
    apply_chat_template: bool = False
    system_instruction: str | None = None
    gen_kwargs: str | None = None


def run_sweep(
    model_args: dict[str, Any], points: Sequence[Point], options: Options, out: Path, host: HostArgs, manager: Any
) -> None:
    """Run all points that are not finished.

    Args:
        model_args: As for ``--model aft``, without k and layers.
        points: (k, layers), in the order to run.
        options: What lm-eval gets.
        out: Folder of the sweep.
        host: What lm-eval tells the engine about the machine.
        manager: lm-eval's task manager.

    Raises:
        ConfigError: If the folder holds a sweep with other settings.
    """
    # It imports torch and lm_eval.
    from lm_eval_aft.model import AFTLM

    config, engine_args = AFTConfig.split(model_args)
    engine_args, name = choose_checkpoint(config.engine, engine_args)
    digest = _digest(model_args, options)
    waiting = [point for point in points if not _is_done(_folder(out, point), digest)]
    for point in points:
        if point not in waiting:
            note(f"{_name(point)}: done before, skipped", err=False)
    if not waiting:
        return
    template = choose_template(config, engine_args)
    store = open_store(config.cache, out / "drafts.sqlite")
    engine = load_engine(config.engine, engine_args, host)
    machine = dict[str, Any]()
    for number, (k, layers) in enumerate(waiting, 1):
        folder = _folder(out, (k, layers))
        point_config = _at(replace(config, record=str(folder / "traces")), (k, layers))
        generations = f"{point_config.generations} generation{'s' * (layers > 0)}"
        note(f"[{number}/{len(waiting)}] {_name((k, layers))}: {generations} a question", err=False)
        lm = AFTLM.around(engine, point_config, template, store, name, engine_args=engine_args)
        _evaluate(
            lm,
            {**model_args, "k": shown_k(k) if isinstance(k, tuple) else k, "layers": layers},
            options,
            folder,
            manager,
            host,
            machine,
        )
        new = lm.computed_usage
        note(f"    {new.generations:,} new generations, {new.generated_tokens:,} new tokens", err=False)
        write_text(folder / DONE, json.dumps({"digest": digest}, indent=2) + "\n")


def _evaluate(
    lm: Any,
    model_args: dict[str, Any],
    options: Options,
    folder: Path,
    manager: Any,
    host: HostArgs,
    machine: dict[str, Any],
) -> None:
    """Run one point."""
    evaluate(
        folder,
        machine,
        model=lm,
        model_args=model_args,
        tasks=list(options.tasks),
        task_manager=manager,
        batch_size=host.batch_size,
        device=host.device,
        limit=options.limit,
        num_fewshot=options.num_fewshot,
        apply_chat_template=options.apply_chat_template,
        fewshot_as_multiturn=options.apply_chat_template,
        system_instruction=options.system_instruction,
        gen_kwargs=key_values("--gen_kwargs", options.gen_kwargs) or None,
    )


def _folder(out: Path, point: Point) -> Path:
    return out / f"k{shown_k(point[0]).replace('/', '-')}_l{point[1]}"


def _name(point: Point) -> str:
    return f"k={shown_k(point[0])} layers={point[1]}" if point[1] else "layers=0 (a single answer)"


def _at(config: AFTConfig, point: Point) -> AFTConfig:
    """The configuration of a point."""
    k, layers = point
    widths = k if isinstance(k, tuple) else ()
    return replace(config, k=next(iter(widths_of(*point)), 1), layers=layers, widths=widths)


def _digest(model_args: dict[str, Any], options: Options) -> str:
    """A digest of everything that decides what a point generates."""
    deciding = {name: value for name, value in model_args.items() if name not in DECIDES_NO_TEXT}
    return sha256(json.dumps([deciding, asdict(options)], sort_keys=True, default=str).encode()).hexdigest()


def _is_done(folder: Path, digest: str) -> bool:
    if not (folder / DONE).is_file():
        return False
    if _read_done(folder).get("digest") != digest:
        raise ConfigError(
            f"{folder} holds a finished point with other settings: give another --output_path, or the same settings."
        )
    return True


def _read_done(folder: Path) -> dict[str, Any]:
    try:
        done = parse_json(read_bytes(folder / DONE))
        if not isinstance(done, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError) as error:
        raise RecordError(f"{folder / DONE} cannot be read ({error}): remove it to run this point again.") from error
    return done


def _write_plans(plans: Mapping[str, SweepPlan], out: Path) -> None:
    text = json.dumps({"plans": {task: asdict(plan) for task, plan in plans.items()}}, indent=2)
    write_text(out / SUMMARY, text + "\n")


def _table(points: Sequence[Point], out: Path) -> str:
    """The leaderboard of these points. It is Markdown, which stays readable in a log file."""
    results = [read_run(_folder(out, point)).path for point in points]
    return render([leaderboard(read_entries(results))], "markdown")


def _layers(ctx: click.Context, parameter: click.Parameter, value: str) -> list[int]:
    """Read comma-separated numbers of layers."""
    return sorted({integer(0)("--layers", part.strip()) for part in value.split(",")})


def _ks(ctx: click.Context, parameter: click.Parameter, value: str) -> list[K]:
    """Read comma-separated values of k, such as 3,5,32/4."""
    ks: set[K] = {widths("--k", part.strip()) for part in value.split(",")}
    return sorted(ks, key=lambda k: k if isinstance(k, tuple) else (k,))


@click.command()
@click.option(
    "--model_args", required=True, help="Model arguments of lm_eval --model aft, without k, layers and record."
)
@click.option(
    "--k",
    "k",
    default="1,3,5",
    show_default=True,
    callback=_ks,
    help="Numbers of drafts to evaluate, separated by commas. 32/4 is 32 drafts and 4 texts in each hidden layer.",
)
@click.option(
    "--layers",
    default="0,1,2,3",
    show_default=True,
    callback=_layers,
    help="Numbers of aggregation layers to evaluate, separated by commas; 0 is a single answer.",
)
@click.option("--tasks", required=True, help="Names of lm-eval tasks, separated by commas.")
@click.option("--output_path", required=True, type=PATH, help="Folder of the sweep. Each setting gets a folder in it.")
@click.option(
    "--limit", type=Real(0, min_open=True), help="Number of questions per task, or a share below 1. The default is all."
)
@click.option("--num_fewshot", type=int, help="Number of examples in the prompt. The default is the task's.")
@click.option(
    "--apply_chat_template", is_flag=True, help="Give the model chats, as lm_eval --apply_chat_template does."
)
@click.option("--system_instruction", help="System message of every prompt.")
@click.option("--gen_kwargs", help="Generation settings of the last layer and of single answers, as in lm_eval.")
@click.option("--include_path", type=PATH, help="Folder with tasks of your own.")
@click.option("--batch_size", default="auto", show_default=True, help="Batch size of the engine, as in lm_eval.")
@click.option(
    "--device", default="cuda:0", show_default=True, help="Device of the engine. It is the CPU if there is no GPU."
)
def sweep(**chosen: Any) -> None:
    """Evaluate a grid of k and layers, and generate nothing twice.

    Each setting is a run in a folder of its own. If a sweep was killed, give the same command again to resume it.
    """
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import setup_logging

    setup_logging()
    register()
    model_args = key_values("--model_args", chosen["model_args"])
    _check(model_args)
    gen_kwargs = key_values("--gen_kwargs", chosen["gen_kwargs"])
    refuse_secrets(gen_kwargs, "--gen_kwargs")
    tasks, out = tuple(chosen["tasks"].split(",")), chosen["output_path"]
    further = chosen["include_path"] and str(chosen["include_path"])
    manager = TaskManager(include_path=further, metadata=dict(model_args))
    names = ("limit", "num_fewshot", "apply_chat_template", "system_instruction", "gen_kwargs")
    options = Options(tasks, **{name: chosen[name] for name in names})
    config, _ = AFTConfig.split(model_args)
    for k, layers in grid(chosen["k"], chosen["layers"]):
        # Refuses a point without end before its generations are counted out.
        _at(config, (k, layers))
    plans = plans_of(_load(tasks, manager, gen_kwargs), config, chosen["k"], chosen["layers"])
    if not plans:
        raise ConfigError(f"--tasks {chosen['tasks']} generates no text: a sweep needs a generate_until task.")
    for task, plan in plans.items():
        note(f"{task}: {plan.distinct} generations a question instead of {plan.separate}: {plan.reason}.", err=False)
    if config.cache == "none":
        note(
            "cache=none keeps no generation, so each setting generates all of its own: leave it out to reuse them.",
            err=False,
        )
    points = grid(chosen["k"], chosen["layers"])
    run_sweep(model_args, points, options, out, HostArgs(chosen["batch_size"], None, chosen["device"]), manager)
    _write_plans(plans, out)
    show(_table(points, out))


def _check(model_args: Mapping[str, Any]) -> None:
    """Refuse model arguments that the sweep itself sets, and those that do not fit it."""
    for name in ("k", "layers", "record"):
        if name in model_args:
            option = "output_path" if name == "record" else name
            raise ConfigError(f"--model_args {name}={model_args[name]} contradicts the sweep: use --{option}.")
    for name in ("strategy", "drafts_from", "aggregator", "proposers", "shard"):
        if name in model_args:
            value = public(name, model_args[name])
            raise ConfigError(f"--model_args {name}={value} does not fit a sweep of k and layers: use lm_eval.")


def _load(tasks: Sequence[str], manager: Any, gen_kwargs: dict[str, Any]) -> dict[str, Any]:
    """The tasks that lm-eval will run, by name, with the generation settings that it will give them."""
    for name in tasks:
        if name not in manager.task_index and not os.path.isfile(name):
            raise ConfigError(f"--tasks {name} is not known: lm_eval ls tasks lists them; --include_path adds yours.")
    loaded: dict[str, Any] = manager.load(list(tasks))["tasks"]
    for task in loaded.values():
        if gen_kwargs and task.config.output_type == "generate_until":
            task.set_config(key="generation_kwargs", value=gen_kwargs, update=True)
    return loaded
