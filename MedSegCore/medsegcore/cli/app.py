"""The commands."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

import medsegcore
from medsegcore.cli.ablate import add_ablate
from medsegcore.cli.console import Console
from medsegcore.cli.crossvalidate import add_cross_validate
from medsegcore.cli.dataset import add_dataset
from medsegcore.cli.distill import add_distill
from medsegcore.cli.finetune import add_fine_tune
from medsegcore.cli.options import (
    Data,
    Device,
    DryRun,
    Label,
    Minutes,
    Precision,
    Resume,
    Seed,
    Setting,
    Steps,
    Test,
    Validate,
    Workers,
)
from medsegcore.errors import MissingInputError, SettingError
from medsegcore.imaging import Region

EXTRA = {"allow_extra_args": True, "ignore_unknown_options": True}
Threshold = Annotated[
    list[str] | None,
    typer.Option("--threshold", help="Label's threshold, e.g. 'MS lesion=0.4'; may be repeated."),
]


def build_app(console: Console) -> typer.Typer:
    """All commands, speaking through `console`."""
    app = typer.Typer(
        no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
        help="Lesion segmentation in MR volumes. Every command also takes --json (one JSON object "
        "per line) and --debug (tracebacks). Exit codes: 0 done, 1 defect of MedSeg, 2 usage, "
        "3 input, 4 model, 5 run, 6 output, 130 cancelled.",
    )  # fmt: skip

    @app.callback(invoke_without_command=True)
    def version(
        show: Annotated[bool, typer.Option("--version", help="Say the version.")] = False,
    ) -> None:
        if show:
            print(medsegcore.__version__)
            raise typer.Exit

    _add_predict(app, console)
    _add_models(app, console)
    add_dataset(app, console)
    _add_train(app, console)
    add_cross_validate(app, console)
    add_ablate(app, console)
    add_distill(app, console)
    add_fine_tune(app, console)
    _add_evaluate(app, console)
    _add_demo(app, console)
    _add_worker(app)
    return app


def _add_predict(app: typer.Typer, console: Console) -> None:
    @app.command(context_settings=EXTRA)
    def predict(
        context: typer.Context,
        model: Annotated[
            list[str],
            typer.Option(
                help="Id of a model, or the path of its folder; repeated: the mean of several "
                "models of the same inputs and labels, and how far they disagree."
            ),
        ],
        out: Annotated[Path, typer.Option(help="Folder for the result.")],
        device: Device = "auto",
        precision: Precision = "auto",
        mirror: Annotated[
            bool,
            typer.Option(
                "--mirror",
                help="Average over the mirrorings that the model knows: up to 8 times slower.",
            ),
        ] = False,
        attention: Annotated[bool, typer.Option(help="Also give the attention maps.")] = True,
        uncertainty: Annotated[
            bool, typer.Option("--uncertainty", help="Also map how sure the model is.")
        ] = False,
        dropout: Annotated[
            int, typer.Option(help="Also map how far so many passes with dropout on disagree.")
        ] = 0,
        threshold: Threshold = None,
        min_lesion_ml: Annotated[
            float, typer.Option(help="Drop lesions smaller than this, in ml.")
        ] = 0.0,
        region: Annotated[
            str | None,
            typer.Option(
                help="Box to work in, as JSON: affine (4x4, RAS in mm, of its middle) and size_mm."
            ),
        ] = None,
        overwrite: Annotated[
            bool, typer.Option("--overwrite", help="Replace a result that is in --out.")
        ] = False,
    ) -> None:
        """Segment one case: give each input of the model by its key, e.g. --flair FILE.

        FILE is NIfTI, NRRD, MHA or a folder with a DICOM series; FILE@3 is volume 3 of a 4-D file.
        """
        from medsegcore.cli.predict import run_predict

        run_predict(
            console, model, input_files(context.args), out, overwrite,
            {"device": device, "precision": precision},
            {
                "mirror": mirror, "attention": attention, "uncertainty": uncertainty,
                "dropout": dropout,
                "thresholds": thresholds(threshold or []), "min_lesion_ml": min_lesion_ml,
                "region": region_option(region),
            },
        )  # fmt: skip


def _add_models(app: typer.Typer, console: Console) -> None:
    from medsegcore.cli import models as commands

    group = typer.Typer(no_args_is_help=True, help="List, show, verify, pack, add, remove models.")
    app.add_typer(group, name="models")
    model = Annotated[str, typer.Argument(help="Id of a model, or the path of its folder.")]

    @group.command("list")
    def list_models() -> None:
        """Every model that is found, and what is wrong with those that cannot be read."""
        commands.list_models(console)

    @group.command()
    def show(model: model) -> None:  # type: ignore[valid-type]
        """The card of a model."""
        commands.show(console, model)

    @group.command()
    def verify(model: model) -> None:  # type: ignore[valid-type]
        """Check description, checksum and that the weights fit the network."""
        commands.verify(console, model)

    @group.command()
    def pack(
        model: model,  # type: ignore[valid-type]
        out: Annotated[Path, typer.Option(help="The .zip to write.")],
    ) -> None:
        """Write a model into one .zip to hand on."""
        commands.pack_model(console, model, out)

    @group.command()
    def add(
        path: Annotated[Path, typer.Argument(help="A model folder or .zip.")],
        model_id: Annotated[
            str | None,
            typer.Option("--id", help="Its id among them; its own if absent."),
        ] = None,
    ) -> None:
        """Copy a model folder or .zip into your own models."""
        commands.add(console, path, model_id)

    @group.command()
    def remove(model: Annotated[str, typer.Argument(help="Id of one of your models.")]) -> None:
        """Delete one of your own models."""
        commands.remove(console, model)


def _add_train(app: typer.Typer, console: Console) -> None:
    @app.command()
    def train(
        data: Data,
        out: Annotated[
            Path, typer.Option(help="Folder of the run; the model is in its model/.")
        ] = Path("runs/training"),
        recipe: Annotated[str, typer.Option(help="Name of a recipe.")] = "rsanet",
        test: Test = None,
        validate: Validate = None,
        minutes: Minutes = None,
        steps: Steps = None,
        validate_every: Annotated[
            int | None, typer.Option(help="Steps; a twentieth of the budget if absent.")
        ] = None,
        early_stop: Annotated[
            int | None, typer.Option(help="End after so many validations without a better one.")
        ] = None,
        setting: Setting = None,
        device: Device = "auto",
        devices: Annotated[int, typer.Option(help="How many, on each computer.")] = 1,
        nodes: Annotated[int, typer.Option(help="Computers, as Slurm or torchrun start them.")] = 1,
        precision: Precision = "auto",
        seed: Seed = 1,
        workers: Workers = 1,
        resume: Resume = False,
        dry_run: DryRun = False,
        label: Label = "lesion",
        limit: Annotated[
            list[str] | None,
            typer.Option(help="A sentence for the card's limits; may be repeated."),
        ] = None,
        model_id: Annotated[
            str | None, typer.Option("--id", help="Id of the new model; the recipe's if absent.")
        ] = None,
    ) -> None:
        """Train a model on a data set, measure it, and write a model folder."""
        from medsegcore.cli.train import run_train

        run_train(
            console, recipe, setting or [], data, out, dry_run,
            {
                "test": test or [], "validation": validate or [], "minutes": minutes,
                "steps": steps, "validate_every": validate_every, "early_stop": early_stop,
                "device": device, "devices": devices, "nodes": nodes, "precision": precision,
                "seed": seed, "workers": workers, "resume": resume, "label": label,
                "limits": limit or [], "model_id": model_id,
            },
        )  # fmt: skip


def _add_evaluate(app: typer.Typer, console: Console) -> None:
    @app.command()
    def evaluate(
        data: Annotated[Path, typer.Option(help="Data set with reference masks.")],
        model: Annotated[
            list[str] | None,
            typer.Option(help="Id of a model, or the path of its folder; may be repeated."),
        ] = None,
        predictions: Annotated[
            list[Path] | None,
            typer.Option(help="Folder of label maps named by case; may be repeated."),
        ] = None,
        patient: Annotated[
            list[str] | None, typer.Option(help="Only this patient; may be repeated.")
        ] = None,
        label: Annotated[
            str, typer.Option(help="Name of the mask files of a folder of cases.")
        ] = "lesion",
        labels: Annotated[
            list[str] | None,
            typer.Option(help="Value of the masks, e.g. 'oedema=2'; may be repeated."),
        ] = None,
        out: Annotated[Path | None, typer.Option(help="A .csv of the figures to write.")] = None,
        lesions: Annotated[
            Path | None, typer.Option(help="A .csv of every lesion, found, missed or false.")
        ] = None,
        report: Annotated[
            Path | None, typer.Option(help="A .html with tables, plots and the worst cases.")
        ] = None,
        device: Device = "auto",
        mirror: Annotated[
            bool,
            typer.Option(
                "--mirror",
                help="Average over the mirrorings that the model knows: up to 8 times slower.",
            ),
        ] = False,
        baseline: Annotated[
            str | None,
            typer.Option(help="Input whose best threshold's Dice is reported beside, e.g. flair."),
        ] = None,
        against: Annotated[
            Path | None,
            typer.Option(help="A .csv that --out wrote for another model: paired tests."),
        ] = None,
        threshold: Threshold = None,
    ) -> None:
        """Measure models, or label maps that are there already, on cases with reference masks.

        Several are compared with paired tests.
        """
        from medsegcore.cli.evaluate import Evaluation, run_evaluate

        run_evaluate(
            console,
            Evaluation(
                data, model or [], predictions or [], patient or [], label,
                label_values(labels or []), out, lesions, report, device, mirror, baseline,
                against, thresholds(threshold or []),
            ),
        )  # fmt: skip


def _add_demo(app: typer.Typer, console: Console) -> None:
    @app.command()
    def demo(
        out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("demo_output"),
    ) -> None:
        """Run the sample case and write masks, attention, a Slicer scene and a picture."""
        from medsegcore.cli.demo import run_demo

        run_demo(console, out)


def _add_worker(app: typer.Typer) -> None:
    @app.command()
    def worker() -> None:
        """Answer a program's requests on stdin until it is closed, with models that stay warm.

        For Slicer, and for another computer's GPU: ssh HOST medseg worker.
        """
        from medsegcore.worker.server import serve

        serve()


def input_files(arguments: list[str]) -> dict[str, str]:
    """["--flair", "a.nii.gz"] to {"flair": "a.nii.gz"}; also "--flair=a.nii.gz".

    Raises:
        MissingInputError: something else, or an input given twice.
    """
    files: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        option = rest.pop(0)
        if not option.startswith("--"):
            raise MissingInputError(
                f"'{option}' does not belong to an input.", "Give inputs as --key FILE."
            )
        key, equals, value = option.removeprefix("--").partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise MissingInputError(f"The input '{key}' has no file.", "Give --key FILE.")
            value = rest.pop(0)
        if key in files:
            raise MissingInputError(f"The input '{key}' is given twice.", "Give one file.")
        files[key] = value
    return files


def thresholds(texts: list[str]) -> dict[str, float]:
    """["MS lesion=0.4"] to {"MS lesion": 0.4}; SettingError otherwise."""
    found = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        try:
            found[name] = float(value)
        except ValueError:
            name = ""
        if not name:
            raise SettingError(f"'{text}' is no threshold.", "Give it as LABEL=VALUE.")
    return found


def label_values(texts: list[str]) -> dict[str, int]:
    """["oedema=2"] to {"oedema": 2}; SettingError otherwise."""
    found: dict[str, int] = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        if not name or not value.isdecimal() or int(value) < 1 or name in found:
            raise SettingError(
                f"'{text}' names no label.", "Give each label once, as NAME=VALUE from 1 on."
            )
        found[name] = int(value)
    return found


def region_option(text: str | None) -> Region | None:
    """The box that a JSON text says."""
    if text is None:
        return None
    try:
        return Region.from_dict(json.loads(text))
    except json.JSONDecodeError as error:
        raise SettingError(f"--region '{text}' is no JSON: {error}.") from error


def recipe_settings(texts: list[str]) -> dict[str, Any]:
    """["width=12", "patch=[64,64,64]"] to values, read as JSON or else as text."""
    import json

    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise SettingError(f"'{text}' is no setting.", "Give it as NAME=VALUE.")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
        if isinstance(found[name], list):
            found[name] = tuple(found[name])
    return found
