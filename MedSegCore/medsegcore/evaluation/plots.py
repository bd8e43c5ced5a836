"""The plots of an evaluation, as SVG: one colour and one marker per method."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure as Canvas

from medsegcore.evaluation.evaluate import EvaluatedCase
from medsegcore.evaluation.metrics import froc

# Okabe and Ito's palette without yellow, which is too light on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# (measure, from, to): None is left to the values.
BOXES = (
    ("Dice", 0, 1), ("sensitivity", 0, 1), ("precision", 0, 1), ("lesion recall", 0, 1),
    ("lesion precision", 0, 1), ("lesion F1", 0, 1), ("HD95", 0, None),
    ("mean surface distance", 0, None), ("volume difference", None, None),
)  # fmt: skip
STYLE: Any = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#DDDDDD", "axes.axisbelow": True, "svg.hashsalt": "medseg",
    "legend.frameon": False,
}  # fmt: skip
Rows = Mapping[str, Sequence[EvaluatedCase]]


def plots(rows: Rows, label: str = "") -> dict[str, str]:
    """SVG by title, of one label; a plot without any point is left out."""
    drawn = {}
    with matplotlib.rc_context(STYLE):
        for title, draw in (
            ("Measures by case", _boxes),
            ("Volumes against the reference (Bland-Altman)", _bland_altman),
            ("Lesions found against false lesions (FROC)", _froc),
            ("Dice against lesion load", _dice_by_load),
        ):
            canvas = draw(rows, label)
            if canvas is not None:
                drawn[title] = svg(canvas)
    return drawn


def box_plots(rows: Rows, label: str = "") -> str:
    """SVG of all measures by method, of which only the figures are needed."""
    with matplotlib.rc_context(STYLE):
        return svg(_boxes(rows, label))


def svg(canvas: Canvas) -> str:
    """The same text whenever the same is drawn."""
    data = io.StringIO()
    # Neither date nor program: the same figures give the same file.
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    canvas.savefig(data, format="svg", metadata=nothing)
    return data.getvalue()


def values(cases: Sequence[EvaluatedCase], measure: str, label: str) -> list[float | None]:
    """A measure of one label over the cases."""
    return [
        figure.value
        for case in cases
        for figure in case.figures
        if (figure.name, figure.label) == (measure, label)
    ]


def look(n: int) -> tuple[str, str]:
    """Colour and marker of the n-th method."""
    # From the eighth on, colours come again with other markers.
    return COLORS[n % len(COLORS)], MARKERS[(n + n // len(COLORS)) % len(MARKERS)]


def _handles(rows: Rows) -> list[Any]:
    """For a legend of the methods."""
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=look(n)[0], marker=look(n)[1], linestyle="", label=name)
        for n, name in enumerate(rows)
    ]


def _legend(canvas: Canvas, rows: Rows) -> None:
    """The methods' names below the axes."""
    canvas.legend(handles=_handles(rows), loc="outside lower center", ncols=min(len(rows), 3))


def _boxes(rows: Rows, label: str) -> Canvas:
    """Box plots with every case as a point; boxes from five cases on."""
    # The names of many methods need a higher place.
    canvas = Canvas(figsize=(9.6, max(5.4, 0.38 * len(rows))), layout="constrained")
    all_axes = canvas.subplots(2, 5).ravel()
    for axes, (measure, low, high) in zip(all_axes, BOXES, strict=False):
        units = {f.unit for cases in rows.values() for f in cases[0].figures if f.name == measure}
        axes.set_title(f"{measure} [{unit}]" if (unit := units.pop()) else measure, fontsize=9)
        for n, cases in enumerate(rows.values()):
            color, marker = look(n)
            defined = [v for v in values(cases, measure, label) if v is not None]
            if len(defined) >= 5:
                axes.boxplot(defined, positions=[n], widths=0.6, showfliers=False,
                             medianprops={"color": color, "linewidth": 2},
                             boxprops={"color": color}, whiskerprops={"color": color},
                             capprops={"color": color})  # fmt: skip
            elif defined:
                axes.hlines(np.median(defined), n - 0.3, n + 0.3, color=color, linewidth=2)
            # Side by side in the order of the cases, so that none hides another.
            spread = 0.18 if len(defined) > 1 else 0.0
            beside = n + np.linspace(-spread, spread, len(defined))
            axes.scatter(beside, defined, s=16, color=color, marker=marker, alpha=0.7, linewidths=0)
        axes.set_xlim(-0.6, len(rows) - 0.4)
        axes.set_xticks([])
        if high is not None:
            axes.set_ylim(-0.03, high + 0.03)
        elif low is not None:
            axes.set_ylim(bottom=low)
        else:
            axes.axhline(0, color="black", linewidth=0.8)
    all_axes[-1].set_axis_off()
    all_axes[-1].legend(handles=_handles(rows), loc="center left")
    return canvas


def _bland_altman(rows: Rows, label: str) -> Canvas:
    """Difference over mean of answered and reference volume; one panel per method.

    Bland JM, Altman DG. Lancet 1986;327:307-310: mean difference, and limits of agreement at
    1.96 standard deviations (from three cases on).
    """
    canvas = Canvas(figsize=(9.6, 3.4 * ((len(rows) + 2) // 3)), layout="constrained")
    all_axes = canvas.subplots((len(rows) + 2) // 3, min(len(rows), 3), squeeze=False, sharey=True)
    for n, (axes, (name, cases)) in enumerate(zip(all_axes.ravel(), rows.items(), strict=False)):
        color, marker = look(n)
        answered = np.array(values(cases, "volume", label), float)
        reference = np.array(values(cases, "reference volume", label), float)
        difference = answered - reference
        axes.scatter((answered + reference) / 2, difference, color=color, marker=marker, s=24)
        mean = float(difference.mean())
        lines = [(mean, "-", f"mean {mean:+.3g} ml")]
        if len(cases) > 2:
            sd = float(difference.std(ddof=1))
            lines += [(mean + f * sd, "--", f"{f:+} sd: {mean + f * sd:+.3g} ml")
                      for f in (-1.96, 1.96)]  # fmt: skip
        for y, style, text in lines:
            axes.axhline(y, color="black", linestyle=style, linewidth=1)
            axes.annotate(text, (1, y), xycoords=("axes fraction", "data"), ha="right",
                          va="bottom", fontsize=8)  # fmt: skip
        axes.margins(y=0.18)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("mean of both volumes [ml]")
        axes.set_ylabel("answer - reference [ml]")
    for axes in all_axes.ravel()[len(rows) :]:
        axes.set_axis_off()
    return canvas


def _froc(rows: Rows, label: str) -> Canvas | None:
    """Recall over false lesions per case, and as a marker where each method works."""
    canvas = Canvas(figsize=(6.4, 4.2), layout="constrained")
    axes = canvas.subplots()
    drawn = False
    for n, cases in enumerate(rows.values()):
        color, marker = look(n)
        counts = [case.by_threshold[label] for case in cases if label in case.by_threshold]
        curve = froc(counts) if counts else None
        if curve is not None:
            axes.plot(curve.false_per_case, curve.recall, color=color)
        lesions = [x for case in cases for x in case.lesions if x.label == label]
        real = [lesion for lesion in lesions if not lesion.false]
        if real:
            recall = sum(lesion.found for lesion in real) / len(real)
            axes.plot((len(lesions) - len(real)) / len(cases), recall, marker, color=color,
                      markersize=8, markeredgecolor="black")  # fmt: skip
            drawn = True
    axes.set_xlabel("false lesions per case (linear up to 1, then logarithmic)")
    axes.set_ylabel("share of reference lesions found")
    axes.set_xscale("symlog", linthresh=1)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1.03)
    _legend(canvas, rows)
    return canvas if drawn else None


def _dice_by_load(rows: Rows, label: str) -> Canvas | None:
    """Dice of each case over its reference volume; cases without a lesion have no place."""
    canvas = Canvas(figsize=(6.4, 4.2), layout="constrained")
    axes = canvas.subplots()
    drawn = False
    for n, cases in enumerate(rows.values()):
        color, marker = look(n)
        load = np.array(values(cases, "reference volume", label), float)
        dice = np.array(values(cases, "Dice", label), float)
        axes.scatter(load[load > 0], dice[load > 0], color=color, marker=marker, s=28, alpha=0.8)
        drawn = drawn or bool((load > 0).any())
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("reference volume [ml] (log scale)")
    axes.set_ylabel("Dice")
    _legend(canvas, rows)
    return canvas if drawn else None
