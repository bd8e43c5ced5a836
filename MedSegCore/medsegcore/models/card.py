"""The model card: README.md of a model folder, generated from model.json alone."""

from collections.abc import Sequence

from medsegcore.models.schema import Metric, ModelDescription, Parent


def model_card(description: ModelDescription) -> str:
    """The card in Markdown."""
    d = description
    use = "allowed" if d.weights.commercial_use else "NOT allowed"
    citations = dict.fromkeys([*d.citation, *(u.citation for u in d.data)])
    lines = [
        f"# {d.title}",
        "",
        f"`{d.id}` {d.version}. {d.task} Anatomy: {d.anatomy}.",
        "",
        f"**Intended use.** {d.intended_use}",
        "",
        "**Limits.**",
        "",
        *[f"- {limit}" for limit in d.limits],
        "",
        "## Figures",
        "",
        *_metric_table(d.metrics),
        "",
        *_inputs_and_output(d),
        "",
        *_training(d),
        "",
        "## Licence",
        "",
        f"Weights: {d.weights.license}; commercial use is {use}.",
        "",
        "## Cost",
        "",
        f"About {d.memory_mb} MB of memory.",
        "",
        *[f"- {t.what}: {t.seconds:.1f} s on {t.device}" for t in d.timings],
        "",
        "## Citation",
        "",
        *[f"- {citation}" for citation in citations],
        "",
    ]
    return "\n".join(lines)


def _inputs_and_output(d: ModelDescription) -> list[str]:
    lines = [
        "## Inputs",
        "",
        "| key | image | modality | needed | normalisation |",
        "|---|---|---|---|---|",
    ]
    for spec in d.inputs:
        need = "required" if spec.required else f"optional (absent: {d.missing_input})"
        need = "exactly one of these; the answer lies on its grid" if d.one_of else need
        mark = ", reference grid" if spec.key == d.reference else ""
        lines.append(
            f"| `{spec.key}` | {spec.title} | {spec.modality} | {need}{mark} "
            f"| {spec.normalisation.method} |"
        )
    spacing = " x ".join("own" if s is None else f"{s:g}" for s in d.grid.spacing)
    tile = " x ".join(str(n) for n in reversed(d.grid.tile))
    return [
        *lines,
        "",
        f"Grid: {d.grid.orientation}, {spacing} mm, {d.grid.dimensionality} tiles of {tile} "
        "voxels (i x j x k). The answer comes back on the reference image's own grid." + _middle(d),
        "",
        "## Output",
        "",
        *[
            f"- {x.value}: {x.name} (threshold {x.threshold:g}"
            f"{', its largest piece alone' if x.one_piece else ''})"
            for x in d.labels
        ],
        *[f"- attention `{a.key}` ({a.kind}): {a.title}" for a in d.attention],
    ]


def _middle(d: ModelDescription) -> str:
    if d.grid.middle_mm is None:
        return ""
    size = f"{d.grid.middle_mm:g}"
    return f" Only the middle {size} x {size} mm are looked at, unless a region is drawn."


def _training(d: ModelDescription) -> list[str]:
    config = ", ".join(f"{name} {value}" for name, value in d.network.config.items())
    settings = ", ".join(
        f"{name} {value}" for name, value in d.training.settings.items() if name != "chosen"
    )
    return [
        "## Training",
        "",
        f"Recipe `{d.training.recipe}`, {d.training.date}, {d.training.steps} steps in "
        f"{d.training.minutes:.0f} minutes on {d.training.device}, seed {d.training.seed}. "
        f"Network `{d.network.name}` with {config}.",
        "",
        *_lineage(d.training.parents),
        "| data | used for | cases | patients | licence |",
        "|---|---|---|---|---|",
        *[
            f"| {u.name} | {u.split} | {u.cases} | {', '.join(u.patients)} | {u.license} |"
            for u in d.data
        ],
        "",
        f"Settings: {settings}.",
        *(f"- {note}" for note in d.training.settings.get("chosen", [])),  # type: ignore[union-attr]
    ]


def _lineage(parents: Sequence[Parent]) -> list[str]:
    said = {"teacher": "Taught by", "start": "Continued from"}
    lines = [f"- {said[p.role]} `{p.id}` {p.version} (SHA-256 `{p.sha256}`)" for p in parents]
    return [*lines, ""] if lines else []


def _metric_table(metrics: list[Metric]) -> list[str]:
    """One row per case, one column per measure; how each was obtained stands below."""
    if not metrics:
        return ["None were measured."]
    names = list(dict.fromkeys((m.name, m.unit) for m in metrics))
    cases = list(dict.fromkeys((m.case, m.n, m.how) for m in metrics))
    notes = list(dict.fromkeys(how for _, _, how in cases))
    head = [f"{name} [{unit}]" if unit else name for name, unit in names]
    lines = ["| case | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]
    for case, n, how in cases:
        values = {
            (m.name, m.unit): m.value for m in metrics if (m.case, m.n, m.how) == (case, n, how)
        }
        cells = [
            ""
            if key not in values
            else "not defined"
            if values[key] is None
            else f"{values[key]:.3g}"
            for key in names
        ]
        note = f" ({notes.index(how) + 1})"
        lines.append(f"| {case}{note} | " + " | ".join(cells) + " |")
    return [*lines, "", *[f"({i}) {how}" for i, how in enumerate(notes, start=1)]]
