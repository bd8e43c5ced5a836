"""`medseg dataset ...`."""

from pathlib import Path
from typing import Annotated

import typer

from medsegcore.cli.console import Console
from medsegcore.errors import DatasetError, OutputError, SettingError


def add_dataset(app: typer.Typer, console: Console) -> None:
    """Add the group `dataset` to the commands."""
    group = typer.Typer(no_args_is_help=True, help="Convert public data sets, and check any.")
    app.add_typer(group, name="dataset")

    @group.command("list")
    def list_adapters() -> None:
        """The public data sets that can be converted, with their licences."""
        list_sources(console)

    @group.command()
    def convert(
        name: Annotated[str, typer.Argument(help="Name of a public data set, see list.")],
        source: Annotated[Path, typer.Argument(help="Folder of its download.")],
        out: Annotated[Path, typer.Option(help="Folder to write; must not exist.")],
    ) -> None:
        """Turn the download of a public data set into nnU-Net's raw form."""
        convert_source(console, name, source, out)

    @group.command()
    def check(
        data: Annotated[Path, typer.Argument(help="Folder of the data set.")],
        out: Annotated[
            Path | None, typer.Option(help="Folder for report.md, report.json and pictures.")
        ] = None,
        folds: Annotated[
            int | None, typer.Option(help="Also split the patients into folds and check these.")
        ] = None,
        label: Annotated[
            str, typer.Option(help="Name of the mask files of a folder of cases.")
        ] = "lesion",
    ) -> None:
        """Open every image and say what is wrong; exit code 3 when something is."""
        check_folder(console, data, out, folds, label)


def list_sources(console: Console) -> None:
    """Print every adapter."""
    from medsegcore.training.datasets.adapters import ADAPTERS

    rows = []
    for adapter in ADAPTERS.values():
        terms = adapter.source
        rows.append(
            [adapter.name, terms.license, "yes" if terms.commercial_use else "no", terms.title]
        )
        console.event(
            "adapter", id=adapter.name, title=terms.title, license=terms.license,
            commercial_use=terms.commercial_use, citation=terms.citation, url=terms.url,
            layout=adapter.layout, channels=list(adapter.channels), labels=adapter.labels,
        )  # fmt: skip
    console.table("Public data sets", ["name", "licence", "commercial use", "title"], rows)


def convert_source(console: Console, name: str, source: Path, out: Path) -> None:
    """Run an adapter."""
    from medsegcore.training.datasets.adapters import ADAPTERS

    if name not in ADAPTERS:
        raise SettingError(f"There is no data set '{name}'.", f"Known: {', '.join(ADAPTERS)}.")
    dataset = ADAPTERS[name].convert(
        source,
        out,
        progress=lambda case, done, total: console.progress("convert", done, total, None),
    )
    console.event(
        "result", folder=str(out), cases=len(dataset.cases), patients=len(dataset.patients),
        sites=dataset.sites, license=dataset.license,
    )  # fmt: skip
    console.say(
        f"{len(dataset.cases)} cases of {len(dataset.patients)} patients are in {out}. "
        f"Licence: {dataset.license}. To cite: {dataset.citation}"
    )


def check_folder(
    console: Console, data: Path, out: Path | None, folds: int | None, label: str
) -> None:
    """Check, print and write; a data set with errors ends as an error."""
    from medsegcore.training.datasets import read_dataset, split_folds
    from medsegcore.training.datasets.check import check_dataset
    from medsegcore.training.datasets.report import write_report

    dataset = read_dataset(data, label, strict=False)
    split = [] if folds is None else split_folds(dataset, folds)
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"'{out}' cannot be made: {error.strerror}.") from error
    report = check_dataset(
        dataset,
        split,
        pictures=out,
        progress=lambda case, done, total: console.progress("check", done, total, None),
    )
    if out is not None:
        write_report(report, out)
    for finding in report.findings:
        console.event(
            "finding", severity=finding.severity, case=finding.case, text=finding.text
        )  # fmt: skip
    console.say(f"{dataset.title}: {report.size}; {report.counts}.")
    if report.findings:
        console.table(
            "Findings",
            ["severity", "case", "finding"],
            [[f.severity, f.case or "all", f.text] for f in report.findings],
        )
    if split:
        console.event("folds", folds=split)
        console.table(
            "Folds",
            ["fold", "cases", "patients"],
            [
                [str(n), str(sum(c.patient in fold for c in dataset.cases)), " ".join(fold)]
                for n, fold in enumerate(split)
            ],
        )
    if out is not None:
        console.say(f"The report is in {out}")
    errors = report.count("error")
    console.event(
        "result", errors=errors, warnings=report.count("warning"), notes=report.count("note")
    )
    if errors:
        raise DatasetError(
            f"'{data}' has {errors} error{'s' if errors > 1 else ''}.",
            "Mend what is listed before training on it.",
        )
