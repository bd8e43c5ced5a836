"""Options that several commands of training have."""

from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[
    Path, typer.Option(help="nnU-Net raw or Decathlon data set, or a folder of cases.")
]
Test = Annotated[
    list[str] | None, typer.Option(help="Patient to keep for testing; may be repeated.")
]
Validate = Annotated[
    list[str] | None,
    typer.Option(help="Patient to choose the best weights by; may be repeated."),
]
Minutes = Annotated[float | None, typer.Option(help="Budget of a training in minutes.")]
Steps = Annotated[int | None, typer.Option(help="Budget of a training in steps.")]
Setting = Annotated[
    list[str] | None,
    typer.Option("--set", help="Setting of the recipe, e.g. width=12; may be repeated."),
]
Device = Annotated[str, typer.Option(help="auto, cuda, cuda:N, mps or cpu.")]
Precision = Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")]
Seed = Annotated[int, typer.Option(help="Of weights and patches.")]
Workers = Annotated[int, typer.Option(help="Processes that make patches.")]
Label = Annotated[str, typer.Option(help="Masks' name in a folder of cases.")]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Go on from the checkpoint in --out, or measure what it made."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")]
