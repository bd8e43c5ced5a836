"""A model folder: model.json, safetensors weights and a card. Reading it executes nothing."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from medsegcore.errors import (
    ModelChecksumError,
    ModelNotFoundError,
    ModelSchemaError,
    ModelWeightsError,
    OutputError,
)
from medsegcore.files import write_file
from medsegcore.models.card import model_card
from medsegcore.models.schema import ModelDescription

if TYPE_CHECKING:
    from torch import nn

DESCRIPTION_FILE = "model.json"
CARD_FILE = "README.md"
MAX_DESCRIPTION_BYTES = 4_000_000


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def new_folder(target: Path, replace: bool = False) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its place when the block ends well.

    Raises:
        OutputError: `target` exists (and `replace` is False), or nothing can be written there.
    """
    target = Path(target)
    if target.exists() and not replace:
        raise OutputError(
            f"The folder '{target}' exists already.", "Choose another name or remove it first."
        )
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        # mkdtemp makes it private to the user; a model folder is meant to be handed on.
        temporary.chmod(0o755)
        yield temporary
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
            os.replace(target, old / target.name)
            os.replace(temporary, target)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(temporary, target)
    except OSError as error:
        raise OutputError(
            f"The folder '{target}' cannot be written: {error.strerror or error}.",
            "Check the free space and the permissions.",
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


@dataclass(frozen=True)
class ModelFolder:
    """A model on disk.

    Attributes:
        path: the folder.
        description: what model.json says.
    """

    path: Path
    description: ModelDescription

    @property
    def weights_path(self) -> Path:
        """The safetensors file."""
        return self.path / self.description.weights.file

    @classmethod
    def read(cls, path: str | Path) -> "ModelFolder":
        """Read and check model.json; the weights are not touched.

        Raises:
            ModelNotFoundError: no folder there, or none with a model.json.
            ModelSchemaError: model.json is no JSON or against the schema.
        """
        path = Path(path)
        file = path / DESCRIPTION_FILE
        if not file.is_file():
            raise ModelNotFoundError(
                f"There is no model folder at '{path}'.",
                f"A model folder holds a file {DESCRIPTION_FILE} and its weights.",
            )
        if file.stat().st_size > MAX_DESCRIPTION_BYTES:
            raise ModelSchemaError(
                f"{file} has {file.stat().st_size / 1e6:.0f} MB, too many for a description."
            )
        try:
            description = ModelDescription.model_validate_json(file.read_bytes())
        except ValidationError as error:
            raise ModelSchemaError(
                f"{file} is no valid model description: {_first_problem(error)}.",
                "Write it with medsegcore, or compare it with model.schema.json.",
            ) from error
        return cls(path, description)

    def check_weights(self) -> None:
        """Check in no time that the weights are there and have their length.

        Raises:
            ModelWeightsError: the file is missing or truncated.
        """
        _check_safetensors_size(self.weights_path)

    def verify(self, deep: bool = True) -> None:
        """Check that the weights are whole, unchanged and, when `deep`, fit the network.

        Raises:
            ModelWeightsError: the file is missing, truncated, or does not fit the network.
            ModelChecksumError: the content differs from the sha256 of model.json.
        """
        _check_safetensors_size(self.weights_path)
        found = sha256_of(self.weights_path)
        expected = self.description.weights.sha256
        if found != expected:
            raise ModelChecksumError(
                f"The weights '{self.weights_path}' have the SHA-256 {found[:12]}... "
                f"but {DESCRIPTION_FILE} says {expected[:12]}...",
                "Copy the model folder again from its source.",
            )
        if deep:
            self._check_against_network()

    def _check_against_network(self) -> None:
        import torch
        from safetensors import safe_open

        from medsegcore.networks import create_network

        spec = self.description.network
        with torch.device("meta"):
            network = create_network(spec.name, spec.config)
        expected = {name: tuple(t.shape) for name, t in network.state_dict().items()}
        with safe_open(self.weights_path, framework="pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                raise ModelWeightsError(
                    f"The weights '{self.weights_path}' do not fit the network '{spec.name}': "
                    f"{name} has shape {found.get(name)}, the network wants "
                    f"{expected.get(name)}.",
                    f"The network's config and the weights of {DESCRIPTION_FILE} belong together.",
                )
        declared = [spec.model_dump() for spec in self.description.attention]
        given: Any = network.attention
        if declared != list(given):
            raise ModelSchemaError(
                f"The attention maps in '{self.path / DESCRIPTION_FILE}' are not those that "
                f"the network '{spec.name}' gives.",
                "Export the model again.",
            )

    def load_network(self, device: str = "cpu") -> "nn.Module":
        """The network with its weights, fp32, in eval mode, after `verify`.

        Raises:
            ModelWeightsError, ModelChecksumError, ModelSchemaError: as `verify`.
        """
        from safetensors.torch import load_file

        from medsegcore.networks import create_network

        self.verify()
        spec = self.description.network
        network = create_network(spec.name, spec.config)
        weights = load_file(self.weights_path)
        network.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
        return network.eval().to(device)

    @classmethod
    def write(
        cls,
        path: str | Path,
        description: ModelDescription,
        network: "nn.Module",
        replace: bool = False,
    ) -> "ModelFolder":
        """Write a new model folder with the weights in the description's dtype, and its card.

        Buffers stay fp32: the running variances of a batch normalisation exceed fp16's 65,504.
        The sha256 of `description.weights` is filled in here. The folder appears as a whole or
        not at all.

        Raises:
            OutputError: the folder exists (and `replace` is False) or cannot be written.
            ModelWeightsError: a weight is not finite, or not in that dtype.
        """
        import torch
        from safetensors.torch import save

        dtype = getattr(torch, description.weights.dtype)
        parameters = {name for name, _ in network.named_parameters()}
        tensors = {}
        for name, tensor in network.state_dict().items():
            kept = tensor.detach().to("cpu", dtype if name in parameters else None).contiguous()
            if kept.is_floating_point() and not torch.isfinite(kept).all():
                raise ModelWeightsError(
                    f"The weights '{name}' are not finite in {description.weights.dtype}.",
                    "Export them as float32, or look at the training's loss.",
                )
            tensors[name] = kept
        path = Path(path)
        with new_folder(path, replace) as folder:
            # `save_file` would make a file that nobody else may read.
            (folder / description.weights.file).write_bytes(save(tensors))
            sha256 = sha256_of(folder / description.weights.file)
            weights = description.weights.model_copy(update={"sha256": sha256})
            description = description.model_copy(update={"weights": weights})
            write_description(folder, description)
        return cls(path, description)

    def with_description(self, description: ModelDescription) -> "ModelFolder":
        """Replace model.json and the card, e.g. after an evaluation; the weights stay."""
        write_description(self.path, description)
        return ModelFolder(self.path, description)


def write_description(folder: Path, description: ModelDescription) -> None:
    """Write model.json and the card into `folder`, each by rename."""
    text = json.dumps(description.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
    write_file(folder / DESCRIPTION_FILE, text)
    write_file(folder / CARD_FILE, model_card(description))


def _check_safetensors_size(path: Path) -> None:
    """A safetensors file says in its header how long it is: tell a cut one from a changed one."""
    if not path.is_file():
        raise ModelWeightsError(f"The weights '{path}' are missing.", "Copy the folder again.")
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            header_size = int.from_bytes(file.read(8), "little")
            if not 2 <= header_size <= min(size, 100_000_000):
                raise ValueError("bad header size")
            header = json.loads(file.read(header_size))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name[:2] != "__"]
        expected = 8 + header_size + max(ends, default=0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelWeightsError(
            f"The weights '{path}' ({size} bytes) are truncated or no safetensors file.",
            "Copy the model folder again from its source.",
        ) from error
    if size < expected:
        raise ModelWeightsError(
            f"The weights '{path}' are truncated: {size} of {expected} bytes are there.",
            "Copy the model folder again from its source.",
        )


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where}: {problem['msg']}" if where else problem["msg"]
