"""The rows of the papers' ablation tables, as data: what each is trained with.

The last row of a paper is its whole method; every other differs from it by its settings alone.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from medsegcore.errors import SettingError
from medsegcore.training.recipes import RECIPES, Recipe, recipe_of


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        title: as the paper calls it; without a comma.
        recipe: name of the recipe.
        settings: of the recipe; all others are its defaults, or what is given for all rows.
        source: where in the paper.
        after: title of the row whose model of the same fold this one learns from.
        takes: the setting that gets that model's folder, as one of several.
        drops: a setting that the row leaves out; without it being given, there is no such row.
    """

    title: str
    recipe: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    after: str = ""
    takes: str = ""
    drops: str = ""

    @property
    def folder(self) -> str:
        """E.g. "aam-kmm" for "+AAM +KMM"."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def _csad() -> list[Row]:
    # Baseline+SCFF is NLC, Proposed is ILC: their figures in tables I and II are the same.
    return [
        Row(title, "csad", {"variant": variant}, source)
        for title, variant, source in (
            ("Baseline", "baseline", "table I"),
            ("Baseline+SCFF (NLC)", "baseline+scff", "tables I, II"),
            ("Baseline+CSAD", "baseline+csad", "table I"),
            ("PLC", "plc", "table II"),
            ("Early fusion", "early", "table III"),
            ("Late fusion", "late", "table III"),
            ("Proposed (ILC)", "proposed", "tables I to III"),
        )
    ]


def _ummkd() -> list[Row]:
    names = {
        "individual": "Individual", "joint": "Joint", "joint+kd": "Joint+KD", "y": "Y-shaped",
        "x": "X-shaped", "chilopod": "Chilopod-shaped",
    }  # fmt: skip
    rows = [
        Row(title, "ummkd", {"sharing": sharing, "norm": "batch"}, "tables I, II")
        for sharing, title in names.items()
    ]
    for norm in ("instance", "layer", "group"):
        rows += [
            Row(f"{title} ({norm} norm)", "ummkd", {"sharing": sharing, "norm": norm}, "table V")
            for sharing, title in ({**names, "ours": "Ours"}).items()
            if sharing not in ("x", "y")
        ]
    return [*rows, Row("Ours", "ummkd", {"sharing": "ours", "norm": "batch"}, "tables I, II, V")]


def _rsanet() -> list[Row]:
    settings = {"3D U-Net": {"block": "rsa", "placement": "000"}}
    for title, block in (("NCL", "nonlocal"), ("RSA", "rsa")):
        for placement in ("010", "101", "111"):
            settings[f"{title}-{placement}"] = {"block": block, "placement": placement}
    whole = settings.pop("RSA-111")
    rows = [Row(title, "rsanet", chosen, "table 1") for title, chosen in settings.items()]
    # The weights as the paper prints them make the lesion the less important class.
    printed = Row("RSA-111 (weights as printed)", "rsanet", {**whole, "loss": "printed"},
                  "section 3.1")  # fmt: skip
    return [*rows, printed, Row("RSA-111", "rsanet", {**whole, "loss": "swapped"}, "table 1")]


def _affinity() -> list[Row]:
    teacher, student = "Teacher: DeepLabV3+", {"architecture": "enet"}
    rows = [Row(teacher, "affinity_teacher", {"architecture": "deeplabv3plus"}, "table 4")]
    for title, terms in (
        ("Student: ENet", ""), ("+LM", "l"), ("+AAM", "a"), ("+KMM", "k"), ("+KMM +LM", "kl"),
        ("+AAM +LM", "al"), ("+AAM +KMM", "ak"), ("+AAM +KMM +LM", "akl"),
    ):  # fmt: skip
        # The weights of section 2.4; those that are not off stay the recipe's.
        off = {
            name: 0.0
            for name, key in (("logits_weight", "l"), ("kernel_weight", "k"),
                              ("affinity_weight", "a"))
            if key not in terms
        }  # fmt: skip
        rows.append(Row(title, "affinity", {**student, **off}, "table 4", teacher, "teachers"))
    return rows


def _edge() -> list[Row]:
    # The paper has no such table: these take away what its sections 2.1 to 2.3 add.
    def row(title: str, source: str, **settings: Any) -> Row:
        return Row(title, "edge_attention", settings, source)

    return [
        Row("Without pre-training", "edge_attention", {"pretrained": "", "edges": "wavelet"},
            "section 2.1", drops="pretrained"),
        row("Without edge attention", "section 2.3", edges="none"),
        row("Edges by convolutions", "section 2.3", edges="convolution"),
        row("Proposed (edges by wavelets)", "abstract, section 2.3", edges="wavelet"),
    ]  # fmt: skip


ABLATIONS: dict[str, list[Row]] = {
    "csad": _csad(),
    "ummkd": _ummkd(),
    "rsanet": _rsanet(),
    "affinity": _affinity(),
    "edge": _edge(),
}


def chosen_rows(
    paper: str, settings: Mapping[str, Any], titles: Sequence[str] | None = None
) -> list[Row]:
    """The rows of a paper, in its order, with those that the chosen ones learn from.

    Args:
        settings: given for all rows.
        titles: all rows when None; upper and lower case are the same.

    Raises:
        SettingError: no such paper, row or setting, or a setting that the rows are about.
    """
    if paper not in ABLATIONS:
        raise SettingError(
            f"There are no ablations of '{paper}'.", f"Papers: {', '.join(ABLATIONS)}."
        )
    rows = [row for row in ABLATIONS[paper] if not row.drops or row.drops in settings]
    _check_settings(rows, settings)
    if titles is None:
        return rows
    by_title = {row.title.lower(): row for row in rows}
    wanted = set()
    for title in titles:
        if title.strip().lower() not in by_title:
            raise SettingError(
                f"There is no row '{title.strip()}'.",
                f"Rows: {', '.join(row.title for row in rows)}.",
            )
        row = by_title[title.strip().lower()]
        wanted |= {row.title, row.after}
    return [row for row in rows if row.title in wanted]


def _check_settings(rows: Sequence[Row], settings: Mapping[str, Any]) -> None:
    recipes = {row.recipe for row in rows}
    known = {name for recipe in recipes for name in _names(recipe)}
    known |= {f"{recipe}.{name}" for recipe in recipes for name in _names(recipe)}
    varied = {name for row in rows for name in row.settings if name != row.drops}
    varied |= {row.takes for row in rows}
    for setting in settings:
        if setting not in known:
            raise SettingError(
                f"No row has the setting '{setting}'.", f"Settings: {', '.join(sorted(known))}."
            )
        if setting.rpartition(".")[2] in varied:
            raise SettingError(
                f"The rows set '{setting}' themselves.", "Choose among them with --rows."
            )


def _names(recipe: str) -> list[str]:
    return [f.name for f in fields(RECIPES[recipe])]


def row_recipe(row: Row, settings: Mapping[str, Any]) -> Recipe:
    """The recipe of a row.

    Args:
        settings: for all rows whose recipe has them; "affinity.config" is for one recipe alone.
    """
    own = {name: settings[name] for name in _names(row.recipe) if name in settings}
    own |= {
        name: settings[f"{row.recipe}.{name}"]
        for name in _names(row.recipe)
        if f"{row.recipe}.{name}" in settings
    }
    return recipe_of(row.recipe, {**own, **row.settings})
