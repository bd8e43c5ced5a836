"""A combo box whose items are ticked (ctkCheckableComboBox): what is offered and what is ticked."""

from collections.abc import Container, Sequence

import qt


def fill(box, texts: Sequence[str], ticked: Container[int]) -> None:
    """Offer texts, of which some are ticked by their place; nobody hears of it."""
    blocked = box.blockSignals(True)
    box.clear()
    for n, text in enumerate(texts):
        box.addItem(text)
        state = qt.Qt.Checked if n in ticked else qt.Qt.Unchecked
        box.setCheckState(box.checkableModel().index(n, 0), state)
    box.blockSignals(blocked)


def ticked(box) -> list[int]:
    """The places of what is ticked."""
    indexes = [box.checkableModel().index(n, 0) for n in range(box.count)]
    return [n for n, index in enumerate(indexes) if box.checkState(index) == qt.Qt.Checked]
