"""The part of the panel where an input is moved onto the reference, and looked at over it."""

from collections.abc import Callable, Mapping
from typing import Any

import qt

from medsegcore.errors import CancelledError, MedSegError

from .InputRegistration import FROM, InputRegistration, RegisteredInput, RegistrationJob
from .Observing import Observers, onSceneClose
from .RegistrationPreview import RegistrationPreview
from .Steps import EventLoopSteps
from .Translation import _

POLL_MS = 50


class RegistrationPart:
    """Registration of one input at a time, its quality, its undo, and a preview in the views.

    The volumes of the user stay as they are: what is moved is a copy.

    Args:
        ui: the widgets of RegistrationPart.ui.
        scene: MRML scene.
        chosen: called with an input's key and the volume node that it shall get: the moved copy,
            or the original when the registration was removed.
        previewStarts: called before the views show a preview.
        registration: does it; that of the scene when None.
    """

    def __init__(
        self,
        ui,
        scene,
        chosen: Callable[[str, Any], None],
        previewStarts: Callable[[], None] = lambda: None,
        registration: InputRegistration | None = None,
    ) -> None:
        self._previewStarts = previewStarts
        self._ui, self._scene, self._chosen = ui, scene, chosen
        self._registration = registration or InputRegistration(scene)
        self._preview = RegistrationPreview(scene)
        self._reference: Any = None
        self._inputs: dict[str, tuple[str, Any]] = {}
        self._job: RegistrationJob | None = None
        self._jobKey = ""
        self._shown: tuple | None = None
        self._drawing: EventLoopSteps | None = None
        self._closed = False
        self._timer = qt.QTimer()
        self._timer.setInterval(POLL_MS)
        for text, kind in (
            (_("Rigid"), "rigid"), (_("Affine"), "affine"), (_("B-spline"), "bspline")
        ):  # fmt: skip
            ui.registrationKindBox.addItem(text, kind)
        self._connections: list[tuple[Any, str, Callable[..., None]]] = [
            (self._timer, "timeout()", self._poll),
            (ui.registrationInputBox, "currentIndexChanged(int)", self._inputChosen),
            (ui.registerButton, "clicked()", self._start),
            (ui.cancelRegistrationButton, "clicked()", self._cancel),
            (ui.removeRegistrationButton, "clicked()", self._remove),
            (ui.checkerboardButton, "clicked()", lambda: self._toggled(ui.blendButton)),
            (ui.blendButton, "clicked()", lambda: self._toggled(ui.checkerboardButton)),
            (ui.blendSlider, "valueChanged(double)", self._showPreview),
        ]
        for widget, signal, slot in self._connections:
            widget.connect(signal, slot)
        self._observers = Observers()
        onSceneClose(self._observers, scene, self._sceneCloses)
        # A scene that was saved while a preview was on brings the views of that moment.
        self._observers.add(scene, scene.EndImportEvent, lambda *_a: self.off())
        self._show()

    @property
    def busy(self) -> bool:
        """Whether a registration is on its way."""
        return self._job is not None

    @property
    def drawing(self) -> bool:
        """Whether a preview is on its way to the views."""
        return self._drawing is not None

    def setInputs(self, reference, inputs: Mapping[str, tuple[str, Any]]) -> None:
        """Say what there is to move.

        Args:
            reference: volume node, None when there is none.
            inputs: {input key: (title, volume node)} of the others.
        """
        self._reference = reference
        self._inputs = dict(inputs) if reference is not None else {}
        box = self._ui.registrationInputBox
        before = box.currentData
        blocked = box.blockSignals(True)
        box.clear()
        for key, (title, node) in self._inputs.items():
            box.addItem(f"{title}: {node.GetName()}", key)
        box.setCurrentIndex(max(box.findData(before), 0) if self._inputs else -1)
        box.blockSignals(blocked)
        self._show()
        self._showPreview()

    def off(self) -> None:
        """End the preview: the views are the user's again."""
        for button in (self._ui.checkerboardButton, self._ui.blendButton):
            button.setChecked(False)
        self._showPreview()

    def close(self) -> None:
        """End a registration and a preview, and let go of scene, timer and widgets."""
        if self._closed:
            return
        self._cancel()
        self.off()
        self._closed = True
        self._timer.stop()
        self._observers.clear()
        connections, self._connections = self._connections, []
        for widget, signal, slot in connections:
            if widget:
                widget.disconnect(signal, slot)

    # The registration.

    def _key(self) -> str:
        return self._ui.registrationInputBox.currentData or ""

    def _node(self):
        node = self._inputs[self._key()][1] if self._key() in self._inputs else None
        # Until the panel hears of it, a volume that was deleted is still an input.
        return node if self._scene.IsNodePresent(node) else None

    def _found(self) -> RegisteredInput | None:
        """The registration that the chosen input has."""
        node = self._node()
        return self._registration.find(self._reference, node) if node is not None else None

    def _inputChosen(self, *_arguments) -> None:
        self._say("")
        self._show()
        self._showPreview()

    def _start(self) -> None:
        node, kind = self._node(), self._ui.registrationKindBox.currentData
        if self.busy or node is None:
            return
        try:
            self._job = self._registration.start(self._reference, node, kind)
        except MedSegError as error:
            self._say(str(error))
            return
        self._jobKey = self._key()
        self._say("")
        self._timer.start()
        self._show()

    def _poll(self) -> None:
        if self._job is None:
            return
        self._job.run.poll()
        self._ui.registrationProgressBar.value = int(100 * self._job.run.share)
        if self._job.run.finished:
            self._end(self._job)

    def _cancel(self) -> None:
        if self._job is not None:
            self._job.run.cancel()
            self._end(self._job)

    def _end(self, job: RegistrationJob) -> None:
        self._job = None
        self._timer.stop()
        found = None
        try:
            found = self._registration.finish(job)
        except CancelledError:
            self._say(_("Cancelled: the scene is as it was."))
        except MedSegError as error:
            self._say(str(error))
        node = self._inputs.get(self._jobKey, ("", None))[1]
        # Not over what the user chose meanwhile, nor for nothing.
        if found is not None and found.improved and node and node.GetID() == job.movingId:
            self._chosen(self._jobKey, found.volumeNode)
        self._show()
        self._showPreview()

    def _remove(self) -> None:
        found, key = self._found(), self._key()
        if found is None:
            return
        original = found.volumeNode.GetNodeReference(FROM)
        if self._node() is found.volumeNode and original is not None:
            self._chosen(key, original)
        self._registration.remove(found)
        self._say("")
        self._show()
        self._showPreview()

    def _sceneCloses(self) -> None:
        self._cancel()
        self.off()
        self.setInputs(None, {})

    # The preview.

    def _toggled(self, other) -> None:
        other.setChecked(False)
        self._showPreview()

    def _showPreview(self, *_arguments) -> None:
        """What the buttons say, on the volumes of now; nothing is made again that is there."""
        ui, node, found = self._ui, self._node(), self._found()
        node = found.volumeNode if found is not None else node
        mode = "board" if ui.checkerboardButton.checked else ""
        mode = "blend" if ui.blendButton.checked else mode
        wanted = (mode, self._reference, node) if mode and node is not None else None
        ui.blendSlider.enabled = mode == "blend"
        if wanted is not None and self._shown is None:
            self._previewStarts()
        if wanted != self._shown:
            self._stopDrawing()
        try:
            if wanted is None:
                self._preview.restore()
            elif mode == "blend":
                self._preview.blend(self._reference, node, ui.blendSlider.value)
            elif wanted != self._shown:
                steps = self._preview.checkerboardSteps(self._reference, node)
                self._drawing = EventLoopSteps(steps, self._drawn)
        except MedSegError as error:
            self._say(str(error))
        self._shown = wanted

    def _drawn(self, _node: object, error: Exception | None) -> None:
        self._drawing = None
        if isinstance(error, MedSegError):
            self._say(str(error))
        elif error is not None:
            raise error

    def _stopDrawing(self) -> None:
        drawing, self._drawing = self._drawing, None
        if drawing is not None:
            drawing.stop()

    # What is shown.

    def _show(self) -> None:
        ui, found = self._ui, self._found()
        some = self._node() is not None
        ui.registerButton.text = (
            _("Register to {name}").format(name=self._reference.GetName())
            if self._reference is not None
            else _("Register")
        )
        reason = ""
        if not some:
            reason = _("Choose a reference and another input that is no sequence.")
        elif found is not None:
            reason = _("It is registered: remove that first.")
        ui.registerButton.enabled = not reason and not self.busy
        ui.registerButton.toolTip = reason or _("Move a copy of the input onto the reference")
        ui.removeRegistrationButton.enabled = found is not None and not self.busy
        for widget in (ui.registrationInputBox, ui.registrationKindBox):
            widget.enabled = some and not self.busy
        for widget in (ui.checkerboardButton, ui.blendButton):
            widget.enabled = some
        for widget in (ui.registrationProgressBar, ui.cancelRegistrationButton):
            widget.visible = self.busy
        ui.registrationProgressBar.value = int(100 * self._job.run.share) if self._job else 0
        if found is not None:
            self._say(found.summary())

    def _say(self, text: str) -> None:
        self._ui.registrationMessageLabel.text = text
        self._ui.registrationMessageLabel.visible = bool(text)
