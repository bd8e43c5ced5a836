"""`medseg models ...`."""

from pathlib import Path

from medsegcore.cli.console import Console
from medsegcore.models import ModelStore, model_card, pack


def list_models(console: Console) -> None:
    """Print every model of the store."""
    rows = []
    for stored in ModelStore().list():
        if stored.folder is None:
            rows.append([stored.path.name, "", "", f"cannot be read: {stored.problem}"])
            console.event("model", path=str(stored.path), problem=stored.problem)
            continue
        d = stored.folder.description
        inputs = ", ".join(s.key if s.required else f"({s.key})" for s in d.inputs)
        rows.append([d.id, d.version, inputs, d.title])
        console.event(
            "model", id=d.id, version=d.version, title=d.title, path=str(stored.path),
            shipped=stored.shipped, inputs=[s.model_dump(mode="json") for s in d.inputs],
        )  # fmt: skip
    console.table("Models; inputs in brackets may be absent", ["id", "version", "inputs", "title"],
                  rows)  # fmt: skip


def show(console: Console, model: str) -> None:
    """Print the card."""
    folder = ModelStore().find(model)
    console.event("model", path=str(folder.path), **folder.description.model_dump(mode="json"))
    console.say(model_card(folder.description))


def verify(console: Console, model: str) -> None:
    """Check description, checksum and weights."""
    folder = ModelStore().find(model)
    folder.verify()
    console.event("result", path=str(folder.path), ok=True)
    console.say(
        f"{folder.description.id} {folder.description.version} in {folder.path} is sound: the "
        "description, the SHA-256 of the weights and their shapes agree."
    )


def pack_model(console: Console, model: str, out: Path) -> None:
    """Write a .zip."""
    path = pack(ModelStore().find(model), out)
    console.event("result", path=str(path), bytes=path.stat().st_size)
    console.say(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")


def add(console: Console, path: Path, model_id: str | None) -> None:
    """Copy or unpack into the user's folder."""
    folder = ModelStore().add(path, model_id)
    console.event("result", path=str(folder.path), id=folder.description.id)
    console.say(f"{folder.description.id} {folder.description.version} is in {folder.path}")
    if not folder.description.metrics:
        console.warn(
            "Nobody has measured this model: its card has no figures. A training that was stopped "
            "while it measured is completed by the same command with --resume; then add it anew."
        )


def remove(console: Console, model: str) -> None:
    """Delete from the user's folder."""
    ModelStore().remove(model)
    console.event("result", id=model)
    console.say(f"{model} is deleted.")
