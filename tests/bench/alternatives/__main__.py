"""Measure the parts that are asked for, print their tables, and write them as JSON."""

import argparse
import json
from importlib import import_module
from pathlib import Path

import alternatives
from alternatives.rounds import Skipped, markdown, plain

PARTS = ("inflate", "precision", "walk", "workers", "counts")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog="alternatives", description=alternatives.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all if none is named")
    parser.add_argument("--rounds", type=int, default=15, help="of each way (15)")
    parser.add_argument("--store", help="precision: a store whose current release is measured; absent: train one")
    parser.add_argument("--json", type=Path, help="write the tables there")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    found = {}
    for part in options.parts or PARTS:
        try:
            tables = import_module(f"alternatives.{part}").measure(options)
        except Skipped as why:
            print(f"\n{part} is skipped: {why}.", flush=True)
            continue
        for title, rows in tables.items():
            print(markdown(title, rows), flush=True)
            found[title] = plain(rows)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
