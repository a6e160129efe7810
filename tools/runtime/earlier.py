"""Which files in a folder of results an earlier call wrote, so that nobody takes them for the newest results."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tools.runtime.run_folder import write_json

LIST = ".results.json"
"""Of the files that were written into its folder: relative path -> [time of writing in nanoseconds, bytes]."""


def earlier_results(folder: Path, written: Iterable[Path]) -> list[Path]:
    """What earlier calls wrote into a folder and is there as they left it, but for what this call has written anew.

    A person's own files, and results that somebody has changed since, are not among them. What is found is remembered
    for the next call, together with `written`.

    Args:
        folder: of the results.
        written: files of this call, from the root on; those outside the folder do not count.
    """
    root = folder.absolute()
    now = {str(path.relative_to(root)): stamp for path in written if root in path.parents and (stamp := _stamp(path))}
    known = {
        name: stamp for name, stamp in _read(root / LIST).items() if name not in now and _stamp(root / name) == stamp
    }
    write_json(root / LIST, {**known, **now})
    return [folder / name for name in sorted(known)]


def remove(files: Iterable[Path], folder: Path) -> None:
    """Remove files, and folders within `folder` that are empty then."""
    for file in files:
        file.unlink(missing_ok=True)
        for parent in file.parents:
            if parent == folder or any(parent.iterdir()):
                break
            parent.rmdir()


def _stamp(path: Path) -> list[int] | None:
    """[Time of writing, size] of a file; None: there is none."""
    try:
        found = path.lstat()
    except (OSError, ValueError):
        return None
    return [found.st_mtime_ns, found.st_size]


def _read(path: Path) -> dict[str, list[int]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # no earlier call, or a list that is damaged
        return {}
    if not isinstance(content, dict):
        return {}
    parts = {name: Path(name).parts for name in content}
    return {name: stamp for name, stamp in content.items() if ".." not in parts[name] and parts[name][:1] != ("/",)}
