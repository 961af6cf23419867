"""A hook of mkdocs: links from a page to a file outside docs/ become links to the repository.

On GitHub the relative links of a page work as they are. The site holds docs/ alone, so there they get the address
``extra.repository`` of mkdocs.yml. A link to a file that does not exist stays as it is, and the strict build
refuses it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

LINK = re.compile(r"\]\((\.\./[^)#\s]+)")


def repository_links(markdown: str, page: Path, docs: Path, repository: str) -> str:
    """Replace the links of a page that leave docs/ and name an existing file.

    Args:
        markdown: Text of the page.
        page: File of the page, below ``docs``.
        docs: Folder of all pages; its parent is the checkout.
        repository: Address of the repository.

    Returns:
        The text with addresses of the form ``REPOSITORY/blob/main/PATH``.
    """

    def address(match: re.Match[str]) -> str:
        target = (page.parent / match[1]).resolve()
        if target.is_relative_to(docs) or not target.exists():
            return match[0]
        return f"]({repository}/blob/main/{target.relative_to(docs.parent).as_posix()}"

    return LINK.sub(address, markdown)


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """The event of mkdocs for the text of each page."""
    return repository_links(
        markdown, Path(page.file.abs_src_path), Path(config.docs_dir).resolve(), config.extra["repository"]
    )
