"""The report of a check as files: report.json for programs, report.md for people."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medsegcore.files import write_file
from medsegcore.training.datasets.check import CaseSummary, Report

JSON_FILE, MARKDOWN_FILE = "report.json", "report.md"


def report_json(report: Report) -> dict[str, Any]:
    """Everything but the files' paths."""
    dataset = report.dataset
    return {
        "name": dataset.name,
        "title": dataset.title,
        "license": dataset.license,
        "commercial_use": dataset.commercial_use,
        "citation": dataset.citation,
        "channels": {key: asdict(channel) for key, channel in dataset.channels.items()},
        "labels": dataset.labels,
        "findings": [asdict(finding) for finding in report.findings],
        "cases": [asdict(case) for case in report.cases],
    }


def write_report(report: Report, folder: Path) -> None:
    """Write both files into an existing folder.

    Raises:
        OutputError: they cannot be written.
    """
    write_file(folder / JSON_FILE, json.dumps(report_json(report), indent=1) + "\n")
    write_file(folder / MARKDOWN_FILE, _markdown(report))


def _markdown(report: Report) -> str:
    dataset = report.dataset
    lines = [
        f"# {dataset.title}", "",
        f"{report.size}; {report.counts}.", "",
        f"Licence: {dataset.license}; commercial use {'' if dataset.commercial_use else 'not '}"
        f"allowed. Citation: {dataset.citation}", "",
        "## Findings", "",
        *_table(
            ["severity", "case", "finding"],
            [[f.severity, f.case or "all", f.text] for f in report.findings],
        ),
        "## Cases", "",
        *_table(
            ["case", "patient", "site", "part", "voxels", "mm", "tilt [deg]",
             *(f"{name} [ml]" for name in dataset.labels)],
            [_case_row(case, list(dataset.labels)) for case in report.cases],
        ),
        "## Intensities", "",
        *_table(
            ["case", "channel", "mean", "sd", "0.5 %", "50 %", "99.5 %", "not finite"],
            [
                [case.id, key, *(f"{v:.4g}" for v in (x.mean, x.sd, *x.percentiles)),
                 str(x.not_finite)]
                for case in report.cases for key, x in case.intensities.items()
            ],
        ),
    ]  # fmt: skip
    pictures = [case for case in report.cases if case.picture]
    if pictures:
        lines += ["## Pictures", ""]
        lines += [f"**{case.id}**\n\n![{case.id}]({case.picture})\n" for case in pictures]
    return "\n".join(lines) + "\n"


def _case_row(case: CaseSummary, labels: list[str]) -> list[str]:
    shape = next(iter(case.shapes.values()), ())
    spacing = next(iter(case.spacings.values()), ())
    volumes = [f"{case.volumes_ml[n]:.3f}" if n in case.volumes_ml else "-" for n in labels]
    return [
        case.id, case.patient, case.site, case.part,
        " x ".join(str(n) for n in shape), " x ".join(f"{s:.3g}" for s in spacing),
        f"{case.tilt_degrees:.1f}", *volumes,
    ]  # fmt: skip


def _table(columns: list[str], rows: list[list[str]]) -> list[str]:
    if not rows:
        return ["None.", ""]
    cells = [[cell.replace("|", "\\|") for cell in row] for row in [columns, *rows]]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return [lines[0], "|" + " --- |" * len(columns), *lines[1:], ""]
