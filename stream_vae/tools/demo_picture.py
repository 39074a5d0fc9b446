"""The demonstration's picture: stamps and their reconstructions, scores against the truth, the latent map."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stream_vae import surveys
from stream_vae.alert import FloatArray, Packet
from stream_vae.avro.framing import FrameReader
from stream_vae.avro.limits import Limits
from stream_vae.backends.onnx import open_session
from stream_vae.errors import ConfigError
from stream_vae.model.release import Release
from stream_vae.stages.decode import Decoder
from stream_vae.stages.stamp import Stamper
from stream_vae.tools.demo import Story

_SHOWN = 6
"""Stamps of each class."""
_REAL, _BOGUS, _INK, _QUIET = "#1b6ca8", "#c8553d", "#222222", "#8a8a8a"
_LAID_OUT = 900
"""Stamps that are considered as markers on the latent map."""


def draw(story: Story, release: Release, path: Path) -> None:
    """Draw what the demonstration found.

    Parameters
    ----------
    story : Story
        Complete.
    release : Release
        The one that scored.
    path : Path
        The .png to write.

    Raises
    ------
    ConfigError
        If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("The picture needs matplotlib.", remedy="pip install 'stream-vae[demo]'.") from error
    kept = {candid: row for row, candid in enumerate(story.candids) if candid in story.packets}
    stamps = dict(zip(kept, _stamps(story, list(kept), release), strict=True))
    figure = Figure(figsize=(13, 8.2), dpi=110, layout="constrained")
    top, bottom = np.asarray(figure.subfigures(2, 1, height_ratios=(1, 1.45)))
    _draw_stamps(top, story, release, kept, stamps)
    left, right = bottom.subplots(1, 2, gridspec_kw={"width_ratios": (1, 1.35)})
    _draw_scores(left, story)
    _draw_map(right, story, kept, stamps)
    figure.savefig(path)


def _stamps(story: Story, candids: list[int], release: Release) -> FloatArray:
    """Cut the stamps out of enriched packets, as the worker did: the field appended changes nothing."""
    profile, limits = surveys.load("ztf"), Limits()
    packets = [Packet(story.packets[candid], "", 0, 0) for candid in candids]
    alerts = Decoder(FrameReader(limits=limits), profile, limits).decode(packets).alerts
    return Stamper(release.card.preprocessing, profile.cutouts, 2**22).cut(alerts).stamps


def _draw_stamps(
    figure: Any, story: Story, release: Release, kept: dict[int, int], stamps: dict[int, FloatArray]
) -> None:
    chosen = [*_examples(story, kept, 1), *_examples(story, kept, 0)]
    figure.suptitle(
        f"Above: difference stamps from the stream.  Below: what release {release.id} decodes from their 21 numbers.",
        fontsize=10,
        color=_INK,
    )
    axes = figure.subplots(2, max(len(chosen), 1), squeeze=False)
    decoder = release.path("decoder.onnx")
    for column, candid in enumerate(chosen):
        row, real = kept[candid], story.truth[candid] == 1
        rows: list[npt.NDArray[Any]] = [stamps[candid][..., 0]]
        if decoder is not None:
            code = story.codes[row][np.newaxis]
            rows.append(open_session(decoder).run(["reconstruction"], {"z": code})[0][0, ..., 0])
        for axis, pixels in zip(axes[:, column], rows, strict=False):
            axis.imshow(pixels, cmap="gray", vmin=-0.6, vmax=1.0, origin="lower")
        axes[0, column].set_title(
            f"{'real' if real else 'bogus'}\nscore {story.scores[row]:.2f}", fontsize=9, color=_REAL if real else _BOGUS
        )
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])


def _examples(story: Story, kept: dict[int, int], label: int) -> list[int]:
    """Choose stamps of one class over the whole range of scores."""
    rows = sorted((story.scores[row], candid) for candid, row in kept.items() if story.truth[candid] == label)
    if not rows:
        return []
    return [rows[i][1] for i in np.unique(np.linspace(0, len(rows) - 1, _SHOWN).astype(int))]


def _draw_scores(axis: Any, story: Story) -> None:
    truth = np.array([story.truth[candid] for candid in story.candids])
    scores = np.array(story.scores)
    edges = np.linspace(0, 1, 26)
    for label, name, colour in ((0, "bogus", _BOGUS), (1, "real", _REAL)):
        chosen = scores[truth == label]
        axis.hist(chosen, edges, color=colour, alpha=0.75, label=f"{name} ({len(chosen):,})")
    axis.set(xlabel="real_score", ylabel="alerts", title="Scores against the simulation's truth", yscale="log")
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_map(axis: Any, story: Story, kept: dict[int, int], stamps: dict[int, FloatArray]) -> None:
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    codes, scores = np.array(story.codes), np.array(story.scores)
    plane = _principal_plane(codes)
    low, high = np.percentile(plane, [0.5, 99.5], axis=0)
    points = axis.scatter(*plane.T, c=scores, s=7, cmap="coolwarm_r", vmin=0, vmax=1, linewidths=0, alpha=0.8)
    taken: list[npt.NDArray[np.float64]] = []
    span = high - low
    for candid, row in list(kept.items())[:_LAID_OUT]:
        place = (plane[row] - low) / span
        if not (place.min() > 0.03 and place.max() < 0.97) or any(
            np.abs(place - other).max() < 0.12 for other in taken
        ):
            continue
        taken.append(place)
        image = OffsetImage(stamps[candid][..., 0], zoom=1.1, cmap="gray", clim=(-0.6, 1.0), origin="lower")
        edge = _REAL if story.truth[candid] else _BOGUS
        axis.add_artist(AnnotationBbox(image, plane[row], pad=0.08, bboxprops={"edgecolor": edge, "linewidth": 1.6}))
    axis.set(
        xlim=(low[0], high[0]), ylim=(low[1], high[1]), xlabel="first principal axis", ylabel="second principal axis"
    )
    axis.set_title("The latent space: every dot an alert; frames are blue where the stamp is real", color=_INK)
    axis.spines[["top", "right"]].set_visible(False)
    axis.figure.colorbar(points, ax=axis, label="real_score", shrink=0.8)
    axis.tick_params(colors=_QUIET)


def _principal_plane(codes: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    centred = codes.astype(np.float64) - codes.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    return np.asarray(centred @ axes[:2].T)
