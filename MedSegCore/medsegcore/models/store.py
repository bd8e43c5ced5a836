"""Where models are found: the shipped zoo and the user's own folder."""

import os
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from medsegcore.errors import (
    MedSegError,
    ModelError,
    ModelNotFoundError,
    ModelSchemaError,
    OutputError,
)
from medsegcore.models.archive import unpack
from medsegcore.models.folder import (
    DESCRIPTION_FILE,
    ModelFolder,
    new_folder,
    write_description,
)
from medsegcore.models.schema import SLUG, ModelDescription

ZOO = Path(__file__).with_name("zoo")


def user_folder() -> Path:
    """The platform's place for a user's models; it need not exist."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME", Path.home() / ".local" / "share"))
    return base / "MedSeg" / "models"


@dataclass(frozen=True)
class StoredModel:
    """A folder of the store: a readable model, or the problem that it has.

    Attributes:
        path: the folder.
        folder: the model, None when it cannot be read.
        problem: the sentence that says why it cannot be read, None when it can.
        shipped: whether it came with MedSeg (and cannot be removed).
    """

    path: Path
    folder: ModelFolder | None
    problem: str | None
    shipped: bool


class ModelStore:
    """The shipped models and those of one user's folder.

    Args:
        user: the user's folder; the platform's own when None.
    """

    def __init__(self, user: str | Path | None = None):
        self.user = Path(user) if user is not None else user_folder()

    def list(self) -> list[StoredModel]:
        """Every model by id, the user's own before a shipped one of the same id."""
        found = []
        for root, shipped in ((self.user, False), (ZOO, True)):
            if not root.is_dir():
                continue
            for path in sorted(root.iterdir()):
                if path.name.startswith(".") or not (path / DESCRIPTION_FILE).is_file():
                    continue
                try:
                    found.append(StoredModel(path, ModelFolder.read(path), None, shipped))
                except MedSegError as error:
                    found.append(StoredModel(path, None, str(error), shipped))
        return found

    def find(self, id_or_path: str | Path) -> ModelFolder:
        """The model of that id, or in that folder.

        Raises:
            ModelNotFoundError: neither.
            ModelSchemaError: the folder is there but its model.json is not sound.
        """
        if (Path(id_or_path) / DESCRIPTION_FILE).is_file():
            return ModelFolder.read(id_or_path)
        models = self.list()
        for model in models:
            if model.folder is not None and model.folder.description.id == str(id_or_path):
                return model.folder
        known = sorted({m.folder.description.id for m in models if m.folder})
        raise ModelNotFoundError(
            f"There is no model '{id_or_path}'.",
            f"Known models: {', '.join(known) or 'none'}; or give the path of a model folder.",
        )

    def add(self, path: str | Path, model_id: str | None = None, deep: bool = True) -> ModelFolder:
        """Copy a model folder, or unpack a .zip of one, into the user's folder.

        Args:
            model_id: under which it is to be found; its own when None.
            deep: as `ModelFolder.verify`; without it no torch is needed.

        Raises:
            ModelError: it is not sound, or `model_id` cannot be an id.
            OutputError: a model of that id is there already, or it cannot be written.
        """
        with tempfile.TemporaryDirectory(prefix="medseg-add-") as temporary:
            path = Path(path)
            if path.is_file():
                model = unpack(path, temporary, deep)
            else:
                model = ModelFolder.read(path)
                model.verify(deep)
            description = _renamed(model.description, model_id)
            target = self.user / description.id
            if target.exists():
                raise _taken(target)
            with new_folder(target) as folder:
                weights = description.weights.file
                shutil.copyfile(model.path / weights, folder / weights)
                write_description(folder, description)
        return ModelFolder.read(target)

    def remove(self, model_id: str) -> None:
        """Delete a model from the user's folder.

        Raises:
            ModelError: it came with MedSeg, or there is none of that id.
            OutputError: it cannot be deleted.
        """
        for model in self.list():
            if model.folder is None or model.folder.description.id != model_id:
                continue
            if model.shipped:
                raise ModelError(f"The model '{model_id}' came with MedSeg and stays.")
            try:
                shutil.rmtree(model.path)
            except OSError as error:
                raise OutputError(f"'{model.path}' cannot be deleted: {error}.") from error
            return
        raise ModelNotFoundError(f"There is no model '{model_id}' in '{self.user}'.")

    def remove_folder(self, path: str | Path) -> None:
        """Delete a folder of the user's own, also one whose model cannot be read.

        Raises:
            ModelError: it does not lie in the user's folder.
            OutputError: it cannot be deleted.
        """
        path = Path(path)
        if path.parent.resolve() != self.user.resolve() or not path.name.strip("."):
            raise ModelError(
                f"'{path}' is none of your own models and stays.", "Models of MedSeg cannot go."
            )
        if not path.is_symlink() and not path.is_dir():
            raise ModelNotFoundError(f"There is no model folder at '{path}'.")
        try:
            if path.is_symlink():
                # What it leads to is not ours.
                path.unlink()
            else:
                # Renamed first: half a model is never listed.
                doomed = Path(tempfile.mkdtemp(prefix=".deleted-", dir=self.user)) / path.name
                os.replace(path, doomed)
                shutil.rmtree(doomed.parent)
        except OSError as error:
            raise OutputError(
                f"'{path}' cannot be deleted: {error.strerror or error}.",
                "Close programs that use it, and check the permissions.",
            ) from error


def check_id(model_id: str) -> None:
    """Raise ModelSchemaError for what cannot be the id of a model."""
    if not re.fullmatch(SLUG, model_id):
        raise ModelSchemaError(
            f"'{model_id}' cannot be the id of a model.",
            "Use 2 to 64 small letters, digits and '-'.",
        )


def _renamed(description: ModelDescription, model_id: str | None) -> ModelDescription:
    if model_id is None:
        return description
    check_id(model_id)
    return description.model_copy(update={"id": model_id})


def _taken(target: Path) -> OutputError:
    try:
        version = f"version {ModelFolder.read(target).description.version} of '{target.name}'"
    except MedSegError:
        version = f"a folder '{target.name}'"
    return OutputError(
        f"Your models have {version} already, in '{target}'.",
        "Give this one another id, or remove that one first.",
    )
