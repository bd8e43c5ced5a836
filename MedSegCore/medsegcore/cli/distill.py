"""`medseg distill`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from medsegcore.cli.console import Console
from medsegcore.cli.options import (
    Data,
    Device,
    DryRun,
    Label,
    Minutes,
    Precision,
    Resume,
    Seed,
    Steps,
    Test,
    Validate,
    Workers,
)
from medsegcore.models import ModelStore


def add_distill(app: typer.Typer, console: Console) -> None:
    """Add `distill` to the commands."""

    @app.command()
    def distill(
        teacher: Annotated[
            list[str],
            typer.Option(
                help="Id of a model, or the path of its folder. Given several times, as for the "
                "folds of one training, the mean of their answers teaches."
            ),
        ],
        data: Data,
        out: Annotated[Path, typer.Option(help="Folder of the run; the model is in its model/.")],
        student: Annotated[
            str,
            typer.Option(
                help="enet, espnet or erfnet, which see slices, also of a 3D teacher's patches; or "
                "unet, in 2D or 3D as the teacher."
            ),
        ] = "enet",
        test: Test = None,
        validate: Validate = None,
        minutes: Minutes = None,
        steps: Steps = None,
        setting: Annotated[
            list[str] | None,
            typer.Option("--set", help='Setting, e.g. config={"width":8}; may be repeated.'),
        ] = None,
        device: Device = "auto",
        precision: Precision = "auto",
        seed: Seed = 1,
        workers: Workers = 1,
        resume: Resume = False,
        dry_run: DryRun = False,
        label: Label = "lesion",
        model_id: Annotated[
            str | None,
            typer.Option("--id", help="Id of the new model; by the teacher's if absent."),
        ] = None,
    ) -> None:
        """Teach a small model by one or several large ones, measure it, and write its folder.

        Of a teacher that takes one of several inputs, such as a CT or an MR, the student does so.
        """
        from medsegcore.cli.train import run_train

        paths = [str(ModelStore().find(model).path) for model in teacher]
        settings = [f"teachers={json.dumps(paths)}", f"architecture={student}", *(setting or [])]
        run_train(
            console, "distill", settings, data, out, dry_run,
            {
                "test": test or [], "validation": validate or [], "minutes": minutes,
                "steps": steps, "device": device, "precision": precision, "seed": seed,
                "workers": workers, "resume": resume, "label": label,
                "model_id": model_id,
            },
        )  # fmt: skip
