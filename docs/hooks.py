"""What the site has beyond the files in docs/: README.md and CHANGELOG.md as pages, and the API reference.

mkdocs calls these functions while it builds (`hooks` in mkdocs.yml).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "detection": "What a detector is.",
    "backbones": "What a network is.",
    "datasets": "What a sample is.",
    "configs": "What a config is. Every option of a config: [configuration](../configuration.md).",
    "tools": "What the scripts share, [the training loop](../training.md) for instance.",
}
"""Package -> what its page begins with."""
_STARTS_BLOCK = re.compile(r"\s*([-*] |\d+\. |\||```)")
_ITEM = re.compile(r"\s*([-*] |\d+\. )")
_FENCE = re.compile(r"\s*```")


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages that have no file in docs/."""
    pages = {"index.md": _as_page("README.md"), "changelog.md": _as_page("CHANGELOG.md")}
    pages |= {f"api/{package}.md": api_page(package, words) for package, words in PACKAGES.items()}
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def _as_page(name: str) -> str:
    """A file of the root with links as they are in docs/; without those to files that are not pages."""
    text = (ROOT / name).read_text(encoding="utf-8")
    text = text.replace("](CHANGELOG.md)", "](changelog.md)")
    return text.replace("](docs/", "](")


def api_page(package: str, words: str) -> str:
    """The public names of each module of a package, for mkdocstrings."""
    folder = "tools/runtime" if package == "tools" else package
    names = sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "__init__.py"
    )
    return f"# {package}\n\n{words}\n\n" + "\n\n".join(f"::: {name}" for name in names) + "\n"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """On GitHub a list, table or code block may begin right below a paragraph; Python-Markdown wants a blank line."""
    lines: list[str] = []
    in_code = False
    for line in markdown.splitlines():
        before = lines[-1] if lines else ""
        if not in_code and before.strip() and _STARTS_BLOCK.match(line) and not _continues(before, line, lines):
            lines.append("")
        lines.append(line)
        in_code ^= bool(_FENCE.match(line))
    return "\n".join(lines)


def _continues(before: str, line: str, lines: list[str]) -> bool:
    """Whether a line that could start a block goes on with the one that the line above belongs to."""
    if line.lstrip().startswith("|"):
        return before.lstrip().startswith("|")
    if line.lstrip().startswith("```"):
        return False
    paragraph = []
    for each in reversed(lines):
        if not each.strip() or _FENCE.match(each):
            break
        paragraph.append(each)
    return any(_ITEM.match(each) for each in paragraph)
