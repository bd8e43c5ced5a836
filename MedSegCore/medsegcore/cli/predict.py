"""`medseg predict`."""

from pathlib import Path
from typing import Any

from medsegcore.cli.console import Console
from medsegcore.errors import OutputError
from medsegcore.imaging import Image, read_image
from medsegcore.inference.result import RESULT_FILE, Result
from medsegcore.models import ModelStore


def run_predict(
    console: Console,
    models: list[str],
    files: dict[str, str],
    out: Path,
    overwrite: bool,
    device: dict[str, str],
    settings: dict[str, Any],
) -> None:
    """Read, segment, write; what can be refused is refused before torch is loaded."""
    from medsegcore.inference.preprocess import check_keys

    folders = [ModelStore().find(model) for model in models]
    if (out / RESULT_FILE).exists() and not overwrite:
        raise OutputError(
            f"'{out}' holds a result already.", "Choose another folder or give --overwrite."
        )
    check_keys(folders[0].description, files)
    images: dict[str, Image] = {}
    for n, (key, text) in enumerate(files.items()):
        console.progress("read", n, len(files), None)
        images[key] = read_image(text)
    console.progress("load", 0, 1, None)
    from medsegcore.inference.ensemble import EnsemblePredictor
    from medsegcore.inference.predictor import Predictor

    predictor: Predictor | EnsemblePredictor
    if len(folders) > 1:
        predictor = EnsemblePredictor(folders, **device)
    else:
        predictor = Predictor(folders[0], **device)
    console.progress("load", 1, 1, 0.0)
    result = predictor.predict(images, progress=console.progress, **settings)
    console.progress("write", 0, 1, None)
    result.save(out, overwrite)
    console.progress("write", 1, 1, 0.0)
    show_lesions(console, result)
    console.event("result", folder=str(out), lesions=len(result.lesions), timings_s=result.timings)
    console.say(f"The result is in {out}")


def show_lesions(console: Console, result: Result, most: int = 12) -> None:
    """The largest lesions as a table, and the totals."""
    keys = list(result.provenance["inputs"])
    rows = [
        [
            str(lesion.number), lesion.label, f"{lesion.volume_ml:.2f}",
            f"{lesion.longest_diameter_mm:.1f}", f"{lesion.mean_probability:.2f}",
            f"{lesion.max_probability:.2f}", "({:.0f}, {:.0f}, {:.0f})".format(*lesion.center_ras),
            *["\N{EN DASH}" if mean is None else f"{mean:.0f}"
              for mean in map(lesion.inputs.get, keys)],
        ]
        for lesion in result.lesions[:most]
    ]  # fmt: skip
    total = sum(lesion.volume_ml for lesion in result.lesions)
    title = f"{len(result.lesions)} lesions, {total:.2f} ml in all"
    if len(result.lesions) > most:
        title += f"; the {most} largest"
    columns = [
        "no.", "label", "volume [ml]", "longest [mm]", "mean prob.", "max prob.",
        "centre RAS [mm]", *[f"mean {key}" for key in keys],
    ]  # fmt: skip
    console.table(title, columns, rows)
