"""What a training is, beside its checkpoints, so that it goes on as what it was."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from medsegcore.errors import SettingError
from medsegcore.files import write_file
from medsegcore.training.recipes.base import Recipe
from medsegcore.training.setup import Plan, Setup

RUN = "run.json"


def write_run(out: Path, asked: Recipe, setup: Setup, plan: Plan) -> None:
    """Say in `out` what was asked for, and what the data and the machine made of it."""
    facts = {
        "asked": _asked(asked, plan),
        "chosen": asdict(setup.recipe),
        "cases": _cases(setup),
        "ended_early": False,
    }
    write_file(out / RUN, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")


def as_before(out: Path, asked: Recipe, plan: Plan) -> Recipe:
    """The recipe with what the data and the machine chose when the training began.

    Raises:
        SettingError: it began as something else.
    """
    before = _read(out)
    if not before:
        return asked
    for name, value in _plain(_asked(asked, plan)).items():
        if before["asked"].get(name) != value:
            raise SettingError(
                f"The training in '{out}' began with {name} {before['asked'].get(name)}, "
                f"not {value}.",
                "Resume it as it began, or choose another folder.",
            )
    return filled(asked, before["chosen"])


def filled(asked: Recipe, chosen: Mapping[str, Any]) -> Recipe:
    """The recipe with those of the chosen values that it leaves open; as they come from JSON."""
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in chosen.items()
        if getattr(asked, name, 0) is None
    }
    return replace(asked, **values)


def check_cases(out: Path, setup: Setup) -> None:
    """Raise SettingError if the training began with other cases."""
    before = _read(out)
    if before and before["cases"] != _cases(setup):
        raise SettingError(
            f"The training in '{out}' began with other cases.",
            "Resume it with the same data and patients, or choose another folder.",
        )


def mark_ended_early(out: Path) -> None:
    """Say that the training is over before its budget is spent."""
    facts = {**_read(out), "ended_early": True}
    write_file(out / RUN, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")


def ended_early(out: Path) -> bool:
    """Whether the training in `out` was over before its budget was spent."""
    return bool(_read(out).get("ended_early"))


def _read(out: Path) -> dict[str, Any]:
    """{} for a training that has no such file."""
    file = out / RUN
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _asked(recipe: Recipe, plan: Plan) -> dict[str, Any]:
    return {
        "recipe": recipe.name,
        **asdict(recipe),
        "seed": plan.seed,
        "devices": plan.devices * plan.nodes,
    }


def _cases(setup: Setup) -> dict[str, list[str]]:
    return {
        use: sorted(f"{case.site}/{case.id}" for case in cases)
        for use, cases in (
            ("training", setup.split.training),
            ("validation", setup.split.validation),
        )
    }


def _plain(facts: dict[str, Any]) -> dict[str, Any]:
    """As it comes back from JSON."""
    return json.loads(json.dumps(facts))
