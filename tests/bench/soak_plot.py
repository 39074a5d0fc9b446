"""The picture of a soak: memory, descriptors, threads, lag and CPU against time, a line a process."""

from itertools import pairwise
from pathlib import Path
from typing import Any

from growth import Sample, Windows, is_ours

MEGA = 1e6


def plot(document: dict[str, Any], path: Path) -> None:
    """Draw what there is so far."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    samples: list[Sample] = document["samples"]
    if len(samples) < 2:
        return
    names = sorted({name for each in samples for name in each["processes"]}, key=lambda name: (not is_ours(name), name))
    colors = dict(zip(names, plt.get_cmap("tab20").colors, strict=False))
    figure, axes = plt.subplots(3, 2, figsize=(15, 12), sharex=True, layout="constrained")
    (ours, others), (descriptors, threads), (lag, cpu) = axes
    for name in names:
        seen = [(each["at_s"] / 60, each["processes"][name]) for each in samples if name in each["processes"]]
        minutes = [at for at, _ in seen]
        style = {"color": colors.get(name, "black"), "lw": 1.8 if is_ours(name) else 1.0}
        memory = ours if is_ours(name) else others
        memory.plot(minutes, [each["rss_bytes"] / MEGA for _, each in seen], label=name, **style)
        memory.plot(minutes, [each["uss_bytes"] / MEGA for _, each in seen], ls="--", **style)
        descriptors.plot(minutes, [each["descriptors"] for _, each in seen], label=name, **style)
        threads.plot(minutes, [each["threads"] for _, each in seen], label=name, **style)
        used = [(b["cpu_s"] - a["cpu_s"]) / ((y - x) * 60) for (x, a), (y, b) in pairwise(seen)]
        cpu.plot(minutes[1:], used, label=name, **style)
    known = [(each["at_s"] / 60, each["lag"]) for each in samples if each["lag"] is not None]
    lag.plot(*zip(*known, strict=True), color="black", lw=1)
    titles = {
        ours: "Memory of ours: RSS, dashed USS (MB)",
        others: "Memory of Ray's processes, servers and this program (MB)",
        descriptors: "Open file descriptors",
        threads: "Threads",
        lag: "Lag (messages not settled)",
        cpu: "CPU (cores)",
    }
    windows = Windows.of(document["minutes"] * 60)
    spans = ((windows.warm_up_s, windows.warm_up_s + windows.width_s), (windows.end_s - windows.width_s, windows.end_s))
    for axis, title in titles.items():
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        for begin, end in spans:
            axis.axvspan(begin / 60, end / 60, color="0.5", alpha=0.12, lw=0)
    for axis in (ours, others, threads):
        axis.legend(fontsize=7, ncols=2)
    for axis in (lag, cpu):
        axis.set_xlabel("minutes of load; grey: the two windows that are compared")
    figure.suptitle(f"{document['rate']:g} real ZTF alerts a second, {document['began']}")
    figure.savefig(path, dpi=90)
    plt.close(figure)
