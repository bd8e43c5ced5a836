"""Every text that the user reads can be translated."""

import ast
from pathlib import Path

import pytest

import SlicerMedSegLib

FOLDER = Path(SlicerMedSegLib.__file__).parent
# Without an application: headless pictures and bundles, the demo, and what tests the module.
HEADLESS = {
    "Demo.py", "EmbeddedCore.py", "Hand.py", "PanelScenarios.py", "Scenarios.py", "SceneViews.py",
}  # fmt: skip
SETTERS = {
    "SetTitle", "SetTitleText", "SetXAxisTitle", "SetYAxisTitle", "_say", "_sayConnection",
    "addItem", "drawText", "errorDisplay", "infoDisplay", "setPlaceholderText", "setStatusTip",
    "setText", "setTitle", "setToolTip", "setWindowTitle", "warningDisplay",
}  # fmt: skip
PROPERTIES = {"placeholderText", "text", "title", "toolTip", "windowTitle"}
ALLOWED = {
    # An item's data and how a text is placed, which nobody reads.
    ("RunPart.py", "'auto'"),
    ("ExplainSheet.py", "'middle'"),
    # A kind, or a name that the user gave, and what is called so.
    ("RegistrationPart.py", "f'{title}: {node.GetName()}'"),
    # Of scripts alone: the panel offers the columns that there are.
    ("LesionTable.py", '''f"There is no column '{sortBy}' to sort by."'''),
    ("LesionTable.py", "f'Columns: {self.columns()}.'"),
}


def plain(node):
    """The texts that become part of an expression's value without `_()`."""
    if isinstance(node, ast.JoinedStr):
        yield node
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, str) and any(c.isalpha() for c in node.value):
            yield node
    elif isinstance(node, ast.Call):
        # "...".format(...), "...".join(...)
        if isinstance(node.func, ast.Attribute):
            yield from plain(node.func.value)
    elif isinstance(node, ast.IfExp):
        yield from plain(node.body)
        yield from plain(node.orelse)
    elif isinstance(node, ast.BinOp):
        yield from plain(node.left)
        yield from plain(node.right)
    elif isinstance(node, ast.BoolOp):
        for value in node.values:
            yield from plain(value)


def shown(node):
    """The expressions of a statement or call whose text the user reads."""
    if isinstance(node, ast.Call):
        named = node.func
        name = named.attr if isinstance(named, ast.Attribute) else getattr(named, "id", "")
        if name in SETTERS or (name.endswith("Error") and name != "AssertionError"):
            yield from [*node.args, *(keyword.value for keyword in node.keywords)]
    elif isinstance(node, ast.Assign):
        targets = [t for t in node.targets if isinstance(t, ast.Attribute)]
        if any(target.attr in PROPERTIES for target in targets):
            yield node.value


def untranslated(name, source):
    """[(line, text)] of what misses `_()`, or gives it something else than one literal."""
    found = []
    for node in ast.walk(ast.parse(source)):
        for expression in shown(node):
            found += [(text.lineno, ast.unparse(text)) for text in plain(expression)]
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "_":
            literal = len(node.args) == 1 and isinstance(node.args[0], ast.Constant)
            found += [] if literal else [(node.lineno, ast.unparse(node))]
    return [(line, text) for line, text in found if (name, text) not in ALLOWED]


@pytest.mark.parametrize(
    "path", [p for p in sorted(FOLDER.glob("*.py")) if p.name not in HEADLESS], ids=lambda p: p.name
)
def test_what_the_user_reads_goes_through_the_translation(path):
    assert untranslated(path.name, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "raise InputError('It is empty.', _('Choose another.'))",
        "raise InputError(_('It is empty.'), f'Choose {other}.')",
        "label.setText('Done')",
        "label.setText(_('Done') if done else 'Not yet')",
        "label.setText(_('Done: ') + f'{count} lesions')",
        "button.toolTip = 'Back to {value}'.format(value=value)",
        "label.setText(_(name))",
        "label.setText(_(f'{count} lesions'))",
    ],
)
def test_a_text_without_translation_is_found(source):
    assert len(untranslated("Any.py", source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "label.setText(_('{count} lesions').format(count=count))",
        "label.setText('')",
        "raise InputError(str(error), '')",
        "button.text = title",
    ],
)
def test_a_text_with_translation_is_not_found(source):
    assert untranslated("Any.py", source) == []
