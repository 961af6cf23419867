"""Writes the HTML page: one file that opens from disk, loads nothing, and shows whatever a model wrote as text.

The page draws itself from JSON embedded in it; transcripts are gzip shards, unpacked in the browser when looked at.
Its Content-Security-Policy allows the one script and the one style by their hashes and nothing else, and the script
puts text on the page as text nodes only. Knows nothing of runs or traces: ``pagedata`` says what it takes. Called by
``report``.
"""

from __future__ import annotations

import base64
import gzip
import html
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from lm_eval_aft.analysis.report.page.data import PageData, PageSample
from lm_eval_aft.core.errors import RecordError
from lm_eval_aft.core.files import atomic_write

SCRIPTS = ("dom", "tables", "charts", "effects", "shards", "detail", "samples", "main")
SHARD_SIZE = 32  # questions: at K=5, L=2 about 250 kB of text, unpacked in some milliseconds
SNIPPET = 160  # characters of a question in the list


def write_page(path: str | Path, data: PageData) -> Path:
    """Write the page; an existing file is replaced when the new one is complete.

    Args:
        path: The HTML file.
        data: What it shows.

    Returns:
        The file.

    Raises:
        RecordError: If it cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as partial, partial.open("w", encoding="ascii", newline="\n") as file:
            file.writelines(_parts(data))
    except OSError as error:
        raise RecordError(
            f"the page cannot be written to {path} ({error.strerror}): name a file in a folder you can write to."
        ) from error
    return path


def _parts(data: PageData) -> Iterator[str]:
    style = _asset("page.css")
    script = '"use strict";\n(() => {\n' + "\n".join(_asset(f"{name}.js") for name in SCRIPTS) + "})();\n"
    head = Template(_asset("page.html"))
    title = html.escape("".join(c if c.isprintable() else " " for c in data.title))
    page = head.substitute(policy=_policy(script, style), title=title, style=style)
    yield page.encode("ascii", "xmlcharrefreplace").decode()
    yield _block("data", "application/json", _json(_light(data)))
    for number in range(0, len(data.samples), SHARD_SIZE):
        shard = _json(plain(data.samples[number : number + SHARD_SIZE])).encode()
        packed = base64.b64encode(gzip.compress(shard, mtime=0)).decode()  # no time inside: equal data, equal page
        yield _block(f"shard-{number // SHARD_SIZE}", "application/gzip", packed)
    yield f"<script>{script}</script>\n</body>\n</html>\n"


def _asset(name: str) -> str:
    return files("lm_eval_aft.analysis.report.page").joinpath("assets", name).read_text(encoding="ascii")


def _policy(script: str, style: str) -> str:
    """Nothing may load and no other script run; inserting a string as markup is refused where browsers know how."""
    hashes = [base64.b64encode(sha256(text.encode()).digest()).decode() for text in (script, style)]
    return (
        f"default-src 'none'; script-src 'sha256-{hashes[0]}'; style-src 'sha256-{hashes[1]}'; base-uri 'none'; "
        "form-action 'none'; trusted-types 'none'; require-trusted-types-for 'script'"
    )


def _block(name: str, kind: str, text: str) -> str:
    return f'<script type="{kind}" id="{name}">{text}</script>\n'


def _json(value: object) -> str:
    """JSON in ASCII without <, > and &: nothing inside can end its element, open a comment or be an entity."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def plain(value: Any) -> Any:
    """Dataclasses as dicts; what JSON has no number for (an open end of an interval) as null."""
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _light(data: PageData) -> dict[str, Any]:
    """All but the transcripts, and an index of these."""
    shown = {field.name: plain(getattr(data, field.name)) for field in fields(data) if field.name != "samples"}
    return {**shown, "index": _index(data.samples)}


def _index(samples: Sequence[PageSample]) -> dict[str, Any]:
    runs = {name: number for number, name in enumerate(dict.fromkeys(sample.run for sample in samples))}
    tasks = {name: number for number, name in enumerate(dict.fromkeys(sample.task for sample in samples))}
    return {
        "runs": list(runs),
        "tasks": list(tasks),
        "shard_size": SHARD_SIZE,
        "entries": [_entry(sample, runs, tasks) for sample in samples],
    }


def _entry(sample: PageSample, runs: dict[str, int], tasks: dict[str, int]) -> list[int | str]:
    """A row of the index: run, task, document, verdict bits (1 right, 2 wrong, 4 fixed, 8 broken), snippet."""
    judged = 0 if sample.right is None else 1 if sample.right else 2
    verdict = judged + 4 * sample.fixed + 8 * sample.broken
    snippet = " ".join(sample.question[: 4 * SNIPPET].split())[:SNIPPET]
    return [runs[sample.run], tasks[sample.task], sample.doc_id, verdict, snippet]
