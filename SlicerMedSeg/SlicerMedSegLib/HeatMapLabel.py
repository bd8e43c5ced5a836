"""A picture in a QLabel that can be clicked."""

from collections.abc import Callable

import numpy as np
import qt


class HeatMapLabel:
    """Draws arrays into a QLabel and tells where it is clicked.

    Args:
        label: QLabel; it gets the size of the picture.
        clicked: called with x and y in pixels from the top left.
    """

    def __init__(self, label, clicked: Callable[[float, float], None]) -> None:
        self._label = label
        self._clicks: _Clicks | None = _Clicks(clicked)
        label.installEventFilter(self._clicks)

    def show(self, picture: np.ndarray) -> None:
        """Show uint8 [height, width, 3]."""
        height, width = picture.shape[:2]
        pixmap = qt.QPixmap()
        # A picture that holds its own voxels: a QImage would look into numpy's memory.
        header = f"P6 {width} {height} 255\n".encode()
        # Nothing is quite black: where bytes pass as text, a zero would end them.
        pixmap.loadFromData(qt.QByteArray(header + np.maximum(picture, 1).tobytes()))
        self._label.setFixedSize(width, height)
        self._label.setPixmap(pixmap)

    def clear(self) -> None:
        """No picture."""
        self._label.clear()

    def close(self) -> None:
        """Listen to the label no more; harmless when repeated."""
        if self._clicks is not None:
            self._label.removeEventFilter(self._clicks)
            self._clicks = None


class _Clicks(qt.QObject):
    def __init__(self, clicked: Callable[[float, float], None]) -> None:
        super().__init__()
        self._clicked = clicked

    def eventFilter(self, watched, event) -> bool:
        if event.type() == qt.QEvent.MouseButtonPress:
            self._clicked(event.pos().x(), event.pos().y())
            return True
        return False
