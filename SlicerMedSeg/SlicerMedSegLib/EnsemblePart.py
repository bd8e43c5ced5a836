"""The row of the panel that chooses models to answer together with the chosen one."""

from collections.abc import Callable, Collection, Sequence

from .CheckableBox import fill, ticked
from .ModelCatalog import CatalogEntry
from .Translation import _


class EnsemblePart:
    """Offers the models whose answers can be averaged with those of the chosen one.

    Args:
        ui: the widgets of RunPart.ui.
        changed: called when the user has ticked another model, or one less.
    """

    def __init__(self, ui, changed: Callable[[], None]) -> None:
        self._ui, self._changed = ui, changed
        self._offered: list[CatalogEntry] = []
        ui.ensembleBox.connect("checkedIndexesChanged()", changed)
        self.offer(None, [])

    @property
    def entries(self) -> list[CatalogEntry]:
        """The models that are ticked."""
        return [self._offered[n] for n in ticked(self._ui.ensembleBox)]

    @property
    def ids(self) -> list[str]:
        """Of the models that are ticked."""
        return [_id(entry) for entry in self.entries]

    def offer(
        self,
        chosen: CatalogEntry | None,
        partners: Sequence[CatalogEntry],
        ids: Collection[str] | None = None,
    ) -> None:
        """Offer the partners of the chosen model, those of `ids` ticked.

        What is ticked and still offered stays so when `ids` is None.
        """
        wanted = self.ids if ids is None else ids
        self._offered = list(partners)
        box = self._ui.ensembleBox
        texts = [f"{entry.title} ({_id(entry)})" for entry in partners]
        fill(box, texts, [n for n, entry in enumerate(partners) if _id(entry) in wanted])
        if chosen is None:
            text = _("Choose a model first.")
        elif not partners:
            text = _("No other model has the inputs and labels of '{title}'.")
            text = text.format(title=chosen.title)
        else:
            text = _("Segments with these models too, one after the other, takes the mean of all "
                     "and maps how much the answers differ. The threshold and the attention are "
                     "those of the model chosen above.")  # fmt: skip
        for widget in (box, self._ui.ensembleLabel):
            widget.enabled = bool(partners)
            widget.toolTip = text

    def close(self) -> None:
        """Let go of the widget; harmless when repeated."""
        if self._ui.ensembleBox:
            self._ui.ensembleBox.disconnect("checkedIndexesChanged()", self._changed)


def _id(entry: CatalogEntry) -> str:
    assert entry.description is not None
    return entry.description.id
