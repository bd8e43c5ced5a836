"""The models that a user can choose from: found, filtered, described, added and deleted."""

import html
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from medsegcore.errors import MedSegError, ModelNotFoundError
from medsegcore.models import (
    InputSpec,
    Label,
    ModelDescription,
    ModelFolder,
    ModelStore,
    StoredModel,
)
from medsegcore.models.contrasts import contrast_of_key
from medsegcore.models.schema import Metric

from .Translation import _

# As `medseg evaluate` calls them; the others stand in model.json.
MAIN_MEASURES = ("Dice", "sensitivity", "precision", "lesion F1", "HD95")


@dataclass(frozen=True)
class CatalogEntry:
    """A model of the list.

    Attributes:
        path: its folder, which tells models apart.
        title: to show.
        description: what model.json says, None when it cannot be read.
        problem: the sentence that says why it cannot be used, "" when it can.
        shipped: whether it came with MedSeg; such a model cannot be deleted.
        searchText: everything that a search looks at, lower case.
    """

    path: Path
    title: str
    description: ModelDescription | None
    problem: str
    shipped: bool
    searchText: str

    @property
    def usable(self) -> bool:
        """Whether it can be run."""
        return not self.problem

    @property
    def anatomy(self) -> str:
        """What part of the body it is for, "" when unknown."""
        return self.description.anatomy if self.description else ""

    @property
    def modalities(self) -> tuple[str, ...]:
        """What images it takes: MR contrasts such as "FLAIR", or modalities such as "CT"."""
        if self.description is None:
            return ()
        return tuple(sorted({_imageOf(spec) for spec in self.description.inputs}))

    def runsOn(self, modalities: Collection[str]) -> bool:
        """Whether these images, as `modalities` names them, are all that it needs."""
        d = self.description
        if d is None:
            return False
        specs = [s for s in d.inputs if s.required or d.missing_input == "refuse"]
        needed = {_imageOf(spec) for spec in specs}
        return needed <= set(modalities) and not set(self.modalities).isdisjoint(modalities)


@dataclass(frozen=True)
class CardSection:
    """A part of a model's card: sentences, and perhaps a table whose first row is its head."""

    title: str
    lines: list[str] = field(default_factory=list)
    table: list[list[str]] = field(default_factory=list)


class ModelCatalog:
    """The models of a store.

    Args:
        store: where they lie; the shipped ones and the user's own when None.
    """

    def __init__(self, store: ModelStore | None = None) -> None:
        self.store = store if store is not None else ModelStore()
        self._entries: list[CatalogEntry] = []
        self.refresh()

    def refresh(self) -> None:
        """Read the folders again."""
        seen: set[str] = set()
        entries = []
        for model in self.store.list():
            entry = _entry(model)
            # A model of the user's own stands in for the shipped one of that id.
            if entry.description is None or entry.description.id not in seen:
                entries.append(entry)
            if entry.description is not None:
                seen.add(entry.description.id)
        self._entries = sorted(entries, key=lambda e: (not e.usable, e.title.lower()))

    def entries(
        self,
        text: str = "",
        anatomy: str = "",
        modalities: Collection[str] = (),
        memoryMb: float | None = None,
    ) -> list[CatalogEntry]:
        """The models that pass every filter, and all that cannot be used, which come last.

        Args:
            text: words that all have to occur in title, task, inputs, labels, authors, ...
            anatomy: one of `anatomies()`, "" for any.
            modalities: the images at hand, some of `modalities()`; empty for any.
            memoryMb: what the device has; models that need more are left out.
        """
        return [
            entry
            for entry in self._entries
            if entry.description is None
            or (
                all(word in entry.searchText for word in text.lower().split())
                and anatomy in ("", entry.anatomy)
                and (not modalities or entry.runsOn(modalities))
                and (memoryMb is None or entry.description.memory_mb <= memoryMb)
            )
        ]

    def anatomies(self) -> list[str]:
        """What there is to filter by."""
        return sorted({entry.anatomy for entry in self._entries if entry.anatomy})

    def modalities(self) -> list[str]:
        """What there is to filter by."""
        return sorted({modality for entry in self._entries for modality in entry.modalities})

    def partners(self, entry: CatalogEntry) -> list[CatalogEntry]:
        """The other models that can be used and whose answers can be averaged with its own."""
        return [
            other
            for other in self._entries
            if other.usable
            and other.description is not None
            and entry.description is not None
            and other.path != entry.path
            and other.description.same_task(entry.description)
        ]

    def entry(self, idOrPath: str | Path) -> CatalogEntry:
        """The model of that id or in that folder.

        Raises:
            ModelNotFoundError: there is none, e.g. because its folder was deleted.
        """
        for entry in self._entries:
            if str(entry.path) == str(idOrPath):
                return entry
            if entry.description is not None and entry.description.id == str(idOrPath):
                return entry
        raise ModelNotFoundError(
            _("There is no model '{name}' any more.").format(name=idOrPath),
            _("Choose another one, or add it again."),
        )

    def add(self, path: str | Path) -> CatalogEntry:
        """Copy a model folder, or unpack a .zip of one, into the user's folder.

        Whether the weights fit the network is told when the worker loads it: that needs torch.

        Raises:
            ModelError: it is not sound or not safe.
            OutputError: a model of that id is there already, or it cannot be written.
        """
        folder = self.store.add(path, deep=False)
        self.refresh()
        return self.entry(folder.path)

    def delete(self, entry: CatalogEntry) -> None:
        """Delete a model of the user's own, whether it can be read or not.

        Raises:
            ModelError: it came with MedSeg or lies elsewhere.
            OutputError: it cannot be deleted.
        """
        try:
            self.store.remove_folder(entry.path)
        finally:
            self.refresh()


def _imageOf(spec: InputSpec) -> str:
    """What an input is called in the filter."""
    if spec.modality != "MR":
        return spec.modality
    return contrast_of_key(spec.key, spec.title).upper() or "MR"


def _entry(model: StoredModel) -> CatalogEntry:
    if model.folder is None:
        name = model.path.name
        problem = model.problem or _("The model cannot be read.")
        return CatalogEntry(model.path, name, None, problem, model.shipped, name.lower())
    d = model.folder.description
    parts = [d.id, d.title, d.task, d.anatomy, d.network.name, *d.citation]
    parts += [f"{spec.key} {spec.title} {spec.modality}" for spec in d.inputs]
    parts += [label.name for label in d.labels] + [use.name for use in d.data]
    text = " ".join(parts).lower()
    return CatalogEntry(model.path, d.title, d, _weightsProblem(model.folder), model.shipped, text)


def _weightsProblem(folder: ModelFolder) -> str:
    try:
        folder.check_weights()
    except MedSegError as error:
        return str(error)
    return ""


def modelCard(entry: CatalogEntry) -> list[CardSection]:
    """What a user has to know before running a model, most important first."""
    d = entry.description
    if d is None:
        return [CardSection(_("Cannot be used"), [entry.problem])]
    broken = [CardSection(_("Cannot be used"), [entry.problem])] if entry.problem else []
    use = _("allowed") if d.weights.commercial_use else _("not allowed")
    return [
        *broken,
        CardSection(
            _("Segments"),
            [d.task, _("Labels: {names}.").format(names=", ".join(map(_labelName, d.labels)))],
        ),
        CardSection(_("Inputs"), [_gridLine(d)], _inputTable(d)),
        CardSection(_("Intended use and limits"), [d.intended_use, *d.limits]),
        *_measured(d),
        CardSection(_("Training data"), [], _dataTable(d)),
        CardSection(
            _("License"),
            [_("Weights: {name}. Commercial use: {use}.").format(name=d.weights.license, use=use)],
        ),
        CardSection(_("Cost"), _cost(d)),
        CardSection(_("Cite"), list(dict.fromkeys(d.citation))),
        CardSection(
            _("Model"),
            [_("{id} {version}, network {network}, in {path}").format(
                id=d.id, version=d.version, network=d.network.name, path=entry.path
            )],
        ),
    ]  # fmt: skip


def modelCardHtml(entry: CatalogEntry) -> str:
    """The card for a text browser. Everything is escaped: a model's text is foreign text."""
    parts = [f"<h3>{html.escape(entry.title)}</h3>"]
    for section in modelCard(entry):
        parts.append(f"<h4>{html.escape(section.title)}</h4>")
        parts += [f"<p>{html.escape(line)}</p>" for line in section.lines]
        if section.table:
            parts.append('<table cellspacing="0" cellpadding="3">')
            for n, row in enumerate(section.table):
                tag = "td" if n else "th"
                cells = "".join(f'<{tag} align="left">{html.escape(c)}</{tag}>' for c in row)
                parts.append(f"<tr>{cells}</tr>")
            parts.append("</table>")
    return "\n".join(parts)


def _inputTable(d: ModelDescription) -> list[list[str]]:
    rows = [[_("image"), _("modality"), _("needed")]]
    for spec in d.inputs:
        text = _("required") if d.needs(spec) else _("optional (zeros in its place)")
        text = _("exactly one of these; the answer lies on its grid") if d.one_of else text
        if spec.key == d.reference:
            text += ", " + _("reference grid")
        rows.append([spec.title, spec.modality, text])
    return rows


def _labelName(label: Label) -> str:
    text = _("{name} (its largest piece alone)") if label.one_piece else "{name}"
    return text.format(name=label.name)


def _gridLine(d: ModelDescription) -> str:
    spacing = " x ".join(_("own") if s is None else f"{s:g}" for s in d.grid.spacing)
    text = _("Works in {dimensions} at {spacing} mm; the answer is on the reference's own grid.")
    text = text.format(dimensions=d.grid.dimensionality, spacing=spacing)
    if d.skull_stripped:
        text += " " + _("The skull has to be removed.")
    if d.grid.middle_mm is not None:
        middle = _("Only the middle {mm:g} x {mm:g} mm are looked at, unless a region is drawn.")
        text += " " + middle.format(mm=d.grid.middle_mm)
    return text


def _measured(d: ModelDescription) -> list[CardSection]:
    """A table of the main measures for each way in which they were obtained."""
    if not d.metrics:
        return [CardSection(_("Measured"), [_("Nothing was measured.")])]
    named = {m.name: m.name.rpartition(": ")[2] for m in d.metrics}
    main = [name for name in MAIN_MEASURES if name in named.values()]
    return [
        _figures([m for m in d.metrics if m.how == how], named, main)
        for how in dict.fromkeys(m.how for m in d.metrics)
    ]


def _figures(metrics: list[Metric], named: dict[str, str], main: list[str]) -> CardSection:
    """One row a case and label, one column a main measure; a model without such shows all."""
    measures = main or list(dict.fromkeys(named.values()))
    units = {named[m.name]: f" [{m.unit}]" if m.unit else "" for m in metrics}
    values: dict[tuple[str, str], dict[str, str]] = {}
    for m in metrics:
        label = m.name.rpartition(": ")[0]
        case = m.case if m.n == 1 else f"{m.case} (n = {m.n})"
        text = "\N{EN DASH}" if m.value is None else f"{m.value:.3g}"
        values.setdefault((case, label), {})[named[m.name]] = text
    labelled = any(label for __, label in values)
    head = [
        _("case"),
        *([_("label")] if labelled else []),
        *(x + units.get(x, "") for x in measures),
    ]
    rows = [
        [case, *([label] if labelled else []), *(row.get(x, "\N{EN DASH}") for x in measures)]
        for (case, label), row in values.items()
    ]
    left = len(set(named.values()) - set(measures))
    lines = [_("Further measures in model.json: {n}.").format(n=left)] if left else []
    return CardSection(_("Measured: {how}").format(how=metrics[0].how), lines, [head, *rows])


def _dataTable(d: ModelDescription) -> list[list[str]]:
    rows = [[_("data"), _("used for"), _("patients"), _("cases"), _("license")]]
    rows += [[u.name, u.split, str(len(u.patients)), str(u.cases), u.license] for u in d.data]
    return rows if d.data else []


def _cost(d: ModelDescription) -> list[str]:
    lines = [_("About {mb} MB of memory.").format(mb=d.memory_mb)]
    for timing in d.timings:
        lines.append(
            _("{what}: {seconds:.1f} s on {device}.").format(
                what=timing.what, seconds=timing.seconds, device=timing.device
            )
        )
    return lines
