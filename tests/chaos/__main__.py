"""The chaos suite: every row in both modes, as a table, and as JSON beside it.

make chaos [MINUTES=30] [MESSAGES=1000000] [ROWS="broker Ray"] [MARKDOWN=FILE], or with `tests` on the path

    python -m chaos [--minutes M] [--messages N] [--rows WORD ...] [--modes MODE ...] [--json OUT] [--markdown OUT]
    python -m chaos --table RESULTS.json ...          # what was found before, as Markdown
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from chaos.load import real_alerts, simulated_alerts
from chaos.rows import MODES, ROWS, Amount, Verdict, play
from servers import Broker, Cluster, MissingServiceError, broker, cluster

SECONDS = 60.0
LIMIT_S = 15.0
"""Of a recovery."""
A_SECOND = 100.0
MOST_FULL = 20_000
"""Messages of a row beyond which only the lite topic is written: alerts of 60 kB fill a disk."""
MARKS = ("<!-- table -->", "<!-- end of table -->")
RESULTS = Path(__file__).resolve().parent / "results"
COLUMNS = (
    *("row", "mode", "faults", "kills", "messages", "/s", "dead", "lost", "doubled", "differ", "recovery s"),
    *("silence s", "exits"),
)


def main() -> int:
    options = _options()
    if options.table:
        print(markdown([row for path in options.table for row in verdicts_of(path)]))
        return 0
    chosen = [row for row in ROWS if not options.rows or any(word.lower() in row.name.lower() for word in options.rows)]
    plays = [(row, mode) for row in chosen for mode in options.modes]
    if not plays:
        sys.exit("No such row; there are: " + "; ".join(row.name for row in ROWS))
    seconds = options.minutes * 60 / len(plays) if options.minutes else SECONDS
    a_second = options.messages / len(plays) / seconds if options.messages else A_SECOND
    amount = Amount(seconds, a_second, -(-options.messages // len(plays)) if options.messages else 0)
    real = real_alerts()
    packets, survey = (real, "ztf") if real else (simulated_alerts("ztf"), "ztf")
    lite = seconds * a_second > MOST_FULL
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(
        f"{len(packets)} {'real' if real else 'simulated'} ZTF alerts over and over, {a_second:.0f} a second for "
        f"{seconds:.0f} s a row; {'lite' if lite else 'full'} output"
    )
    verdicts = []
    with tempfile.TemporaryDirectory(prefix="stream-vae-chaos-") as name, ExitStack() as stack:
        one: Broker | None = None
        for number, (row, mode) in enumerate(plays):
            folder = Path(name) / str(number)
            with ExitStack() as own:
                if row.brokers > 1:
                    server: Broker | Cluster = own.enter_context(cluster())
                else:
                    server = one = one or stack.enter_context(broker(for_tests=True))
                verdict = play(
                    row, mode, server, packets, folder, amount=amount, survey=survey, lite=lite, limit_s=LIMIT_S
                )
            verdicts.append(verdict)
            _tell(console, verdict)
            _write(options.json, amount, verdicts, real=bool(real), lite=lite)  # so far, should the rest fail
            if verdict.problems or options.keep:
                _keep_logs(folder, options.json.with_suffix("") / str(number))
    console.print(_table(verdicts))
    if options.markdown:
        _put(options.markdown, markdown(verdicts))
    return int(any(verdict.problems for verdict in verdicts))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, help=f"of load in all; otherwise {SECONDS:g} s a row and mode")
    parser.add_argument("--messages", type=int, help=f"to send in all, at least; otherwise {A_SECOND:g} a second")
    parser.add_argument("--rows", nargs="*", default=[], metavar="WORD", help="only rows whose name has one of these")
    parser.add_argument("--modes", nargs="*", default=MODES, choices=MODES)
    parser.add_argument("--keep", action="store_true", help="keep the workers' logs also where nothing is wrong")
    default = RESULTS / f"{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
    parser.add_argument("--json", type=Path, default=default, help="where the verdicts go")
    parser.add_argument("--markdown", type=Path, help=f"where the table goes too; between {MARKS[0]} and {MARKS[1]}")
    parser.add_argument("--table", type=Path, nargs="+", help="play nothing: print the table of such verdicts")
    return parser.parse_args()


def _keep_logs(folder: Path, to: Path) -> None:
    to.mkdir(parents=True, exist_ok=True)
    for log in folder.glob("*.log"):
        (to / log.name).write_bytes(log.read_bytes())


def _cells(verdict: Verdict) -> list[str]:
    v = verdict
    numbers = (v.faults, v.kills, v.messages, round(v.a_second), v.dead_letters, v.lost, v.duplicated, v.differing)
    counts = [f"{number:,}" for number in numbers]
    return [v.row, v.mode, *counts, v.recovery, f"{v.silence_s:.1f}", f"{len(v.exits)}"]


def verdicts_of(path: Path) -> list[Verdict]:
    return [Verdict(**row) for row in json.loads(path.read_text(encoding="utf-8"))["rows"]]


def markdown(verdicts: list[Verdict]) -> str:
    """Write verdicts as a table for a README; what is wrong with a row stands below it."""
    rows = [COLUMNS, ["---"] * 2 + ["---:"] * (len(COLUMNS) - 2), *map(_cells, verdicts)]
    lines = ["| " + " | ".join(cells) + " |" for cells in rows]
    wrong = [f"- {each.row}, {each.mode}: {problem}" for each in verdicts for problem in each.problems]
    total = f"{sum(each.messages for each in verdicts):,} messages, {sum(each.faults for each in verdicts):,} faults."
    return "\n".join([*lines, "", total, *wrong])


def _put(path: Path, table: str) -> None:
    """Write the table to a file, where it has marks for it between them."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    before, mark, rest = text.partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    text = f"{before}{mark}\n{table}\n\n{MARKS[1]}{after}" if mark else f"{table}\n"
    path.write_text(text, encoding="utf-8")


def _table(verdicts: list[Verdict]) -> Table:
    table = Table(*COLUMNS, title="Faults; recovery: median / longest", caption="All is as promised.")
    for verdict in verdicts:
        table.add_row(*_cells(verdict), style="red" if verdict.problems else None)
    if wrong := sum(bool(verdict.problems) for verdict in verdicts):
        table.caption = f"{wrong} of {len(verdicts)} are not as promised."
    return table


def _tell(console: Console, verdict: Verdict) -> None:
    heads = dict(zip(COLUMNS[2:], _cells(verdict)[2:], strict=True))
    latency = {name: f"{each:.2f}" if each else "-" for name, each in verdict.latency_s.items()}
    console.print(
        f"{verdict.row}, {verdict.mode}: {heads}, exits {verdict.exits}, median latency s {latency}, "
        f"{verdict.seconds:g} s in all",
        highlight=False,
    )
    for problem in verdict.problems:
        console.print(f"    {problem}", style="red", highlight=False)


def _write(path: Path, amount: Amount, verdicts: list[Verdict], **more: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "date": f"{datetime.now(UTC):%Y-%m-%d}"}
    document = {"machine": machine, "amount": asdict(amount), **more, "rows": [asdict(each) for each in verdicts]}
    path.write_text(json.dumps(document, indent=1), encoding="utf-8")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except MissingServiceError as error:
        sys.exit(str(error))
