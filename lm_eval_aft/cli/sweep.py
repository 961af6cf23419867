"""``aft sweep``: a grid of k and layers with one loaded model and one draft store.

Runs lm-eval in process, point by point from the cheapest; each point is an ordinary lm-eval results folder with its
traces, and what an earlier point generated is reused. Called by ``cli``. The plan (which generations are distinct)
is in ``plan``; everything about generating is in ``schedule``. Over 200 lines because running, continuing
and summarising share the layout of the folder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import click

from lm_eval_aft.analysis.cost import TaskCost
from lm_eval_aft.analysis.runs import read_entries
from lm_eval_aft.analysis.scores import score_interval
from lm_eval_aft.analysis.stats import Interval
from lm_eval_aft.bundled import choose_checkpoint
from lm_eval_aft.core.arguments import integer, key_values
from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.errors import ConfigError, RecordError
from lm_eval_aft.core.files import atomic_write
from lm_eval_aft.inference.sweep_plan import SweepPlan, grid, plans_of
from lm_eval_aft.storage.results import Score

DONE = "point.json"


@dataclass(frozen=True, slots=True)
class Options:
    """What every point shares, as lm-eval's ``simple_evaluate`` takes it."""

    tasks: tuple[str, ...]
    limit: float | None = None
    num_fewshot: int | None = None
    apply_chat_template: bool = False
    system_instruction: str | None = None
    gen_kwargs: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the summary: a metric of a task at a point; cost is per question, repeats and turns included.

    The interval is None where neither samples nor lm-eval give one, FLOPs where the model's shape is unknown.
    """

    k: int
    layers: int
    task: str
    metric: str
    filter: str
    value: float
    low: float | None
    high: float | None
    questions: int
    generations: float
    generated_tokens: float
    prompt_tokens: float
    flops: float | None


def run_sweep(
    model_args: dict[str, Any], points: Sequence[tuple[int, int]], options: Options, out: Path, host: Any, manager: Any
) -> list[Row]:
    """Run all points that are not done and return the summary's rows.

    Args:
        model_args: As for ``--model aft``, without k and layers.
        points: (k, layers), in the order to run.
        options: What lm-eval gets.
        out: Folder of the sweep.
        host: ``HostArgs`` for the engine.
        manager: lm-eval's task manager.

    Raises:
        ConfigError: If the folder holds a sweep with other settings.
    """
    from lm_eval_aft.engines.registry import load_engine
    from lm_eval_aft.inference.checkpoint import choose_template
    from lm_eval_aft.model import AFTLM
    from lm_eval_aft.storage.draft_store import open_store

    config, engine_args = AFTConfig.split(model_args)
    engine_args, name = choose_checkpoint(config.engine, engine_args)
    digest = _digest(model_args, options)
    waiting = [point for point in points if not _is_done(_folder(out, point), digest)]
    for point in points:
        if point not in waiting:
            click.echo(f"{_name(point)}: done before, skipped")
    if waiting:
        template = choose_template(config, engine_args)
        store = open_store(config.cache, out / "drafts.sqlite")
        engine = load_engine(config.engine, engine_args, host)
    for number, point in enumerate(waiting, 1):
        k, depth = point
        folder = _folder(out, point)
        texts = f"{k * depth + 1} generation{'s' * (k * depth > 0)}"
        click.echo(f"[{number}/{len(waiting)}] {_name(point)}: {texts} a question")
        at = replace(config, k=k, layers=depth, record=str(folder / "traces"))
        lm = AFTLM.around(engine, at, template, store, name)
        _evaluate(lm, {**model_args, "k": k, "layers": depth}, options, folder, manager, host)
        spent = lm.computed_usage
        click.echo(f"    {spent.generations:,} new generations, {spent.generated_tokens:,} new tokens")
        rows = _rows(point, folder)
        done = {"digest": digest, "rows": [asdict(row) for row in rows]}
        _write(folder / DONE, json.dumps(done, indent=2) + "\n")
    return [Row(**row) for point in points for row in _read_done(_folder(out, point))["rows"]]


def _evaluate(lm: Any, model_args: dict[str, Any], options: Options, folder: Path, manager: Any, host: Any) -> None:
    """One lm-eval run, saved as its own command line saves it."""
    import lm_eval
    from lm_eval.loggers import EvaluationTracker

    tracker = EvaluationTracker(output_path=str(folder))
    results: dict[str, Any] = lm_eval.simple_evaluate(
        model=lm,
        model_args=model_args,
        tasks=list(options.tasks),
        task_manager=manager,
        evaluation_tracker=tracker,
        log_samples=True,
        batch_size=host.batch_size,
        device=host.device,
        limit=options.limit,
        num_fewshot=options.num_fewshot,
        apply_chat_template=options.apply_chat_template,
        fewshot_as_multiturn=options.apply_chat_template,
        system_instruction=options.system_instruction,
        gen_kwargs=key_values("--gen_kwargs", options.gen_kwargs) or None,
    )
    results["config"]["model"] = "aft"
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for task in results["configs"]:
        tracker.save_results_samples(task_name=task, samples=samples[task])


def _rows(point: tuple[int, int], folder: Path) -> list[Row]:
    """The scores of a point and what each task cost; tasks that generate nothing are left out."""
    entry = max(read_entries([folder], folder / "traces"), key=lambda each: each.run.path.name)
    costs = {task: cost for task, cost in entry.costs.items() if cost.own}
    return [
        _row(point, score, score_interval(entry, score), costs[score.task])
        for score in entry.run.scores
        if score.task in costs
    ]


def _row(point: tuple[int, int], score: Score, interval: Interval, cost: TaskCost) -> Row:
    known = interval.method != "none"
    return Row(
        k=point[0],
        layers=point[1],
        task=score.task,
        metric=score.metric,
        filter=score.filter,
        value=score.value,
        low=interval.low if known else None,
        high=interval.high if known else None,
        questions=score.n,
        generations=round(cost.generations, 1),
        generated_tokens=round(cost.generated_tokens, 1),
        prompt_tokens=round(cost.prompt_tokens, 1),
        flops=round(cost.flops, 1) if cost.flops else None,
    )


def _folder(out: Path, point: tuple[int, int]) -> Path:
    return out / f"k{point[0]}_l{point[1]}"


def _name(point: tuple[int, int]) -> str:
    return f"k={point[0]} layers={point[1]}" if point[1] else "layers=0 (a plain answer)"


def _digest(model_args: dict[str, Any], options: Options) -> str:
    said = {name: value for name, value in model_args.items() if name not in ("record", "cache", "batch_tokens")}
    return sha256(json.dumps([said, asdict(options)], sort_keys=True, default=str).encode()).hexdigest()


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
        done = json.loads((folder / DONE).read_text(encoding="utf-8"))
        if not isinstance(done, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError) as error:
        raise RecordError(f"{folder / DONE} cannot be read ({error}): remove it to run this point again.") from error
    return done


def _write(path: Path, text: str) -> None:
    try:
        with atomic_write(path) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RecordError(f"{path} cannot be written ({error.strerror}): free the disk and run it again.") from error


def write_summary(rows: Sequence[Row], plans: dict[str, SweepPlan], out: Path) -> str:
    """Write summary.json and summary.md; returns the Markdown."""
    head = "| k | layers | task | metric | value | 95% interval | generations | generated tokens | TFLOPs |"
    lines = [head, "|" + "---|" * head.count(" | ") + "---|"]
    for r in rows:
        name = r.metric if r.filter == "none" else f"{r.metric} ({r.filter})"
        flops = "unknown" if r.flops is None else _three_digits(r.flops / 1e12)
        cost = f"{r.generations:g} | {r.generated_tokens:,.0f} | {flops}"
        interval = "unknown" if r.low is None or r.high is None else f"{r.low:.3f} to {r.high:.3f}"
        lines.append(f"| {r.k} | {r.layers} | {r.task} | {name} | {r.value:.3f} | {interval} | {cost} |")
    text = "\n".join([*lines, "", "Cost is per question. Intervals as aft plot draws them.", ""])
    _write(out / "summary.md", text)
    plain = {"plans": {task: asdict(plan) for task, plan in plans.items()}, "rows": [asdict(row) for row in rows]}
    _write(out / "summary.json", json.dumps(plain, indent=2) + "\n")
    return text


def _three_digits(number: float) -> str:
    """A short text of a 100M model is 0.01 TFLOPs, a long one of a 70B model some thousands."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _numbers(low: int) -> Any:
    def parse(ctx: click.Context, parameter: click.Parameter, value: str) -> list[int]:
        return sorted({integer(low)(f"--{parameter.name}", part.strip()) for part in value.split(",")})

    return parse


@click.command()
@click.option("--model_args", required=True, help="As for lm_eval --model aft, without k and layers.")
@click.option("--k", "k", default="1,3,5", show_default=True, callback=_numbers(1), help="Texts per layer.")
@click.option("--layers", default="0,1,2,3", show_default=True, callback=_numbers(0), help="Aggregation passes.")
@click.option("--tasks", required=True, help="Comma-separated, as lm-eval knows them.")
@click.option("--output_path", required=True, type=click.Path(path_type=Path), help="Folder of the sweep.")
@click.option("--limit", type=float, help="Questions per task.")
@click.option("--num_fewshot", type=int, help="Shots.")
@click.option("--apply_chat_template", is_flag=True, help="Chat contexts instead of bare strings.")
@click.option("--system_instruction", help="lm-eval's.")
@click.option("--gen_kwargs", help="lm-eval's; for the last layer.")
@click.option("--include_path", help="Folder of further tasks.")
@click.option("--batch_size", default="auto", show_default=True, help="lm-eval's.")
@click.option("--device", default="cuda:0", show_default=True, help="lm-eval's.")
def sweep(**given: Any) -> None:
    """Evaluate a grid of k and layers, generating nothing twice.

    Every point is an ordinary lm-eval results folder; the same command again continues a killed sweep.
    """
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import setup_logging

    import lm_eval_aft
    from lm_eval_aft.core.engine import HostArgs

    setup_logging()
    lm_eval_aft.register()
    model_args = key_values("--model_args", given["model_args"])
    for name in ("k", "layers", "record"):
        if name in model_args:
            raise ConfigError(f"--model_args {name}={model_args[name]} contradicts the sweep: use --{_option(name)}.")
    for name in ("strategy", "drafts_from"):
        if name in model_args:
            raise ConfigError(
                f"--model_args {name}={model_args[name]} does not fit a sweep of k and layers: use lm_eval."
            )
    gen_kwargs = key_values("--gen_kwargs", given["gen_kwargs"])
    tasks, out = tuple(given["tasks"].split(",")), given["output_path"]
    manager = TaskManager(include_path=given["include_path"], metadata=dict(model_args))
    names = ("limit", "num_fewshot", "apply_chat_template", "system_instruction", "gen_kwargs")
    options = Options(tasks, **{name: given[name] for name in names})
    config, _ = AFTConfig.split(model_args)
    plans = plans_of(_load(tasks, manager, gen_kwargs), config, given["k"], given["layers"])
    if not plans:
        raise ConfigError(f"--tasks {given['tasks']} generates no text: a sweep needs a generate_until task.")
    for task, plan in plans.items():
        click.echo(f"{task}: {plan.distinct} generations a question instead of {plan.separate}: {plan.reason}.")
    if config.cache == "none":
        click.echo("But cache=none keeps nothing, so every point makes all of its own: leave it out to reuse them.")
    host = HostArgs(given["batch_size"], None, given["device"])
    rows = run_sweep(model_args, grid(given["k"], given["layers"]), options, out, host, manager)
    click.echo(write_summary(rows, plans, out), nl=False)


def _option(name: str) -> str:
    return "output_path" if name == "record" else name


def _load(tasks: Sequence[str], manager: Any, gen_kwargs: dict[str, Any]) -> dict[str, Any]:
    """The tasks that lm-eval will run, by name, with the generation settings that it will give them."""
    for name in tasks:
        if name not in manager.task_index and not Path(name).is_file():
            raise ConfigError(f"--tasks {name} is not known: lm_eval ls tasks lists them; --include_path adds yours.")
    loaded: dict[str, Any] = manager.load(list(tasks))["tasks"]
    for task in loaded.values():
        if gen_kwargs and task.config.output_type == "generate_until":
            task.set_config(key="generation_kwargs", value=gen_kwargs, update=True)
    return loaded
