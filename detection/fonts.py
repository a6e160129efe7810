"""Fonts that have the letters of the class names: DejaVu Sans, else one of the system's."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

from configs.errors import printable_logger

logger = printable_logger(__name__)

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_LIKELY = ("noto", "droid", "wqy", "source", "unifont", "arial", "msyh", "simsun", "gothic", "pingfang", "freesans")
"""Parts of the names of fonts with many letters; they are looked into first."""
_MOST_FILES = 1000


def load_font(size: int, text: str = "") -> Font:
    """A font of this height in pixels with all letters of `text`, as far as this machine has one."""
    return _loaded(size, font_file(frozenset(text)))


@lru_cache(maxsize=64)
def font_file(letters: frozenset[str]) -> Path | None:
    """The file of a font with these letters; None: Pillow's own font, which has few.

    Where no font has them all, DejaVu Sans draws boxes in their place, and a warning says so once.
    """
    usual = _dejavu()
    if usual is None:
        return None
    unknown = {letter for letter in letters if not letter.isascii()}
    missing = unknown - _letters_of(usual) if unknown else unknown
    missing = {letter for letter in missing if letter.isprintable()}
    if not missing:
        return usual
    for path in _system_fonts():
        if missing <= _letters_of(path):
            return path
    shown = "".join(sorted(missing)[:20])
    logger.warning(
        "no font on this machine has the letters %s of the classes' names, so pictures show boxes in their place: "
        "install one, such as fonts-noto-cjk or fonts-noto-core", shown,
    )  # fmt: skip
    return usual


@lru_cache(maxsize=256)
def _loaded(size: int, file: Path | None) -> Font:
    return ImageFont.load_default(size) if file is None else ImageFont.truetype(str(file), size)


@lru_cache(maxsize=1)
def _dejavu() -> Path | None:
    """DejaVu Sans, with Latin, Greek and Cyrillic letters, out of matplotlib's package (which is not imported)."""
    package = importlib.util.find_spec("matplotlib")
    if package is None or package.origin is None:
        return None
    file = Path(package.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans-Bold.ttf"
    return file if file.exists() else None


@lru_cache(maxsize=_MOST_FILES)
def _letters_of(path: Path) -> frozenset[str]:
    """The letters that a font file has; none where it cannot be read."""
    try:
        from fontTools.ttLib import TTFont  # comes with matplotlib

        with TTFont(path, fontNumber=0, lazy=True) as font:
            return frozenset(map(chr, font.getBestCmap() or ()))
    except Exception:  # damaged fonts raise many kinds; fontTools may be absent
        return frozenset()


def _system_fonts() -> list[Path]:
    """The font files of this machine, those that are likely to have many letters first."""
    files = [path for folder in _font_folders() for path in _fonts_below(folder)]
    files.sort(
        key=lambda path: (not any(part in path.name.lower() for part in _LIKELY), "bold" not in path.name.lower())
    )
    return files[:_MOST_FILES]


def _fonts_below(folder: Path) -> Iterator[Path]:
    for directory, _, names in os.walk(folder):
        yield from (Path(directory, name) for name in sorted(names) if name.lower().endswith((".ttf", ".otf", ".ttc")))


def _font_folders() -> list[Path]:
    home = Path.home()
    if sys.platform == "win32":
        return [Path(os.environ.get("WINDIR", r"C:\Windows")) / "Fonts"]
    if sys.platform == "darwin":
        return [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library" / "Fonts"]
    return [home / ".local/share/fonts", home / ".fonts", Path("/usr/local/share/fonts"), Path("/usr/share/fonts")]
