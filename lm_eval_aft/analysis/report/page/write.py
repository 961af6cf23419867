"""Writes the HTML page: one file that opens from disk, loads nothing, and shows what a model wrote as text.

The page draws itself from JSON that is embedded in it. Samples are gzip shards, which the browser unpacks when it needs
them. The Content-Security-Policy allows one script and one style, by their hashes, and nothing else. The script puts
text on the page as text nodes only.
"""

from __future__ import annotations

import base64
import gzip
import html
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from lm_eval_aft.analysis.report.page.data import PageData, PageSample
from lm_eval_aft.analysis.report.tables import to_jsonable
from lm_eval_aft.core.files import atomic_write, writing

SCRIPTS = (
    "dom",
    "tables",
    "charts",
    "overview",
    "effects",
    "aggregation",
    "shards",
    "diff",
    "detail",
    "samples",
    "main",
)
# Questions in a shard: at k=5, layers=2 about 250 kB of text, which a browser unpacks in a few milliseconds.
SHARD_SIZE = 32
# Characters of a question in the list.
SNIPPET = 160


def write_page(path: str | Path, data: PageData) -> Path:
    """Write the page. An existing file is replaced when the new one is complete.

    Args:
        path: The HTML file.
        data: What it shows.

    Returns:
        The file.

    Raises:
        RecordError: The file cannot be written.
    """
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as partial, partial.open("w", encoding="ascii", newline="\n") as file:
            file.writelines(_parts(data))
    return path


def _parts(data: PageData) -> Iterator[str]:
    style = _asset("page.css")
    script = '"use strict";\n(() => {\n' + "\n".join(_asset(f"{name}.js") for name in SCRIPTS) + "})();\n"
    head = Template(_asset("page.html"))
    title = html.escape("".join(character if character.isprintable() else " " for character in data.title))
    page = head.substitute(policy=_policy(script, style), title=title, style=style)
    yield page.encode("ascii", "xmlcharrefreplace").decode()
    yield _block("data", "application/json", _embedded_json(_without_samples(data)))
    for start in range(0, len(data.samples), SHARD_SIZE):
        shard = _embedded_json(to_jsonable(data.samples[start : start + SHARD_SIZE])).encode()
        # Without a time inside, equal data give an equal page.
        packed = base64.b64encode(gzip.compress(shard, mtime=0)).decode()
        yield _block(f"shard-{start // SHARD_SIZE}", "application/gzip", packed)
    yield f"<script>{script}</script>\n</body>\n</html>\n"


def _asset(name: str) -> str:
    return files("lm_eval_aft.analysis.report.page").joinpath("assets", name).read_text(encoding="ascii")


def _policy(script: str, style: str) -> str:
    """A policy under which nothing loads, no other script runs, and inserting a string as markup is refused."""
    hashes = [base64.b64encode(sha256(text.encode()).digest()).decode() for text in (script, style)]
    return (
        f"default-src 'none'; script-src 'sha256-{hashes[0]}'; style-src 'sha256-{hashes[1]}'; base-uri 'none'; "
        "form-action 'none'; trusted-types 'none'; require-trusted-types-for 'script'"
    )


def _block(name: str, kind: str, text: str) -> str:
    return f'<script type="{kind}" id="{name}">{text}</script>\n'


def _embedded_json(value: object) -> str:
    """JSON in ASCII without <, > and &, so that no text can end its element, open a comment or be an entity."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _without_samples(data: PageData) -> dict[str, Any]:
    """Everything but the samples, and an index of these."""
    parts = {field.name: to_jsonable(getattr(data, field.name)) for field in fields(data) if field.name != "samples"}
    return {**parts, "index": _index(data.samples)}


def _index(samples: Sequence[PageSample]) -> dict[str, Any]:
    names = {field: _numbered(getattr(sample, field) for sample in samples) for field in ("run", "task", "category")}
    return {
        "runs": list(names["run"]),
        "tasks": list(names["task"]),
        "categories": list(names["category"]),
        "shard_size": SHARD_SIZE,
        "entries": [_index_entry(sample, names) for sample in samples],
    }


def _numbered(names: Iterable[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(dict.fromkeys(names))}


def _index_entry(sample: PageSample, names: Mapping[str, Mapping[str, int]]) -> list[int | str | None]:
    """One row of the list.

    Returns:
        Numbers of run, task and category, the document, the grade as bits (1 right, 2 wrong, 4 fixed, 8 broken), the
        right drafts, the layer that changed the answer, and the start of the question.
    """
    right = 0 if sample.right is None else 1 if sample.right else 2
    snippet = " ".join(sample.question[: 4 * SNIPPET].split())[:SNIPPET]
    return [
        names["run"][sample.run],
        names["task"][sample.task],
        names["category"][sample.category],
        sample.doc_id,
        right + 4 * sample.fixed + 8 * sample.broken,
        sample.right_drafts,
        sample.changed,
        snippet,
    ]
