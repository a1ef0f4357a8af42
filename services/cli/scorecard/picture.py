"""A scorecard as a PNG: reliability with its intervals, and Brier scores beside what the base rate alone would get."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from services.cli.report import PNG_COLORS, PNG_MARKERS
from services.cli.scorecard import show, words
from services.cli.scorecard.sums import Card, Scorecard

if TYPE_CHECKING:  # an extra: only --png needs it
    from matplotlib.axes import Axes


def png(found: Scorecard, span: str) -> bytes:
    """Needs matplotlib and no display; at least one card must have outcomes (`show.plotted`)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cards = show.plotted(found.cards)
    figure = Figure(figsize=(11.5, 5.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    left.plot([0, 1], [0, 1], color="#777777", linewidth=0.9, linestyle="--", zorder=1)
    for card, color, marker in zip(cards, PNG_COLORS, PNG_MARKERS, strict=False):
        said, came = [one.mean_p for one in card.bins], [one.share for one in card.bins]
        ends = [one.interval for one in card.bins]
        reach = [
            [share - low for share, (low, _) in zip(came, ends, strict=True)],
            [high - share for share, (_, high) in zip(came, ends, strict=True)],
        ]
        left.errorbar(
            said,
            came,
            yerr=reach,
            color=color,
            marker=marker,
            markersize=5,
            linewidth=1.3,
            elinewidth=0.8,
            capsize=2,
            label=f"{words.name_of(card)} ({card.n:,})",
            zorder=3,
        )
    left.set_xlim(-0.02, 1.02)
    left.set_ylim(-0.02, 1.02)
    left.set_aspect("equal")
    left.set_xlabel("what was said (p_edge)")
    left.set_ylabel("what came (share that still paid)")
    left.set_title("Reliability: on the dashed line, p means p", loc="left", fontsize=11)

    _briers(right, cards)
    for axes in (left, right):
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=8.5)
    figure.suptitle(f"{words.headline(found, span)}", x=0.01, ha="left", fontsize=10.5, fontweight="bold", wrap=True)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def _briers(axes: "Axes", cards: Sequence[Card]) -> None:
    """One bar a model, its interval, and a tick where the base rate alone would be."""
    for at, (card, color) in enumerate(zip(cards, PNG_COLORS, strict=False)):
        assert card.brier is not None
        assert card.base_rate is not None
        value, low, high = card.brier
        axes.barh(at, value, height=0.55, color=color, alpha=0.75, zorder=2)
        if low is not None and high is not None:
            axes.errorbar(value, at, xerr=[[value - low], [high - value]], color="#222222", capsize=3, lw=1, zorder=3)
        reference = card.base_rate * (1 - card.base_rate)
        axes.plot([reference, reference], [at - 0.38, at + 0.38], color="#222222", linewidth=2, zorder=4)
    axes.plot([], [], color="#222222", linewidth=2, label="always saying the base rate")
    names = [words.name_of(card).replace(" ", "\n", 2) for card in cards]
    axes.set_yticks(range(len(cards)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("Brier score (less is better), 95 % interval")
    axes.set_title("Brier: shorter than the black tick is better than the base rate", loc="left", fontsize=11)
