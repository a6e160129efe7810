"""Write what is made from the classes in configs/: the JSON schemas and the reference page of all options.

    python tools/config_schema.py

Run it after a change of an option. Writes configs/schema/*.json, by which editors complete and check YAML, and
docs/configuration.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs.reference import SCHEMAS, json_schema, reference_page
from tools.runtime import cli

ROOT = Path(__file__).resolve().parents[1]


def main(args: argparse.Namespace) -> None:
    for path, text in files().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))


def files() -> dict[Path, str]:
    """Each file and what is to be in it."""
    schemas = {ROOT / f"configs/schema/{name}.json": f"{json.dumps(json_schema(name), indent=1)}\n" for name in SCHEMAS}
    return {**schemas, ROOT / "docs/configuration.md": reference_page()}


def make_parser() -> argparse.ArgumentParser:
    return cli.make_parser(__doc__)


if __name__ == "__main__":
    cli.run(main, make_parser())
