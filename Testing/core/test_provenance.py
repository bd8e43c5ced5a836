"""Patients whom a model knows already, and where weights come from."""

import shutil

import pytest

from medsegcore.models import DatasetUse, ModelFolder, WeightsSpec
from medsegcore.training.datasets import Case
from medsegcore.training.provenance import (
    how_unseen,
    kept_settings,
    known_to,
    parent_of,
    patients_held_out,
    seen_before,
)
from medsegcore.training.recipes import EdgeAttentionRecipe


def use(name, split, *patients):
    return DatasetUse(
        name=name, split=split, patients=list(patients), cases=len(patients), license="CC0",
        citation="nobody",
    )  # fmt: skip


@pytest.fixture
def description(shipped_model):
    uses = [
        use("here", "training", "p1", "p2"), use("here", "validation", "p3"),
        use("here", "test", "p4"), use("there", "training", "p5"),
    ]  # fmt: skip
    return shipped_model.description.model_copy(update={"id": "known", "data": uses})


def test_patients_that_were_trained_on_or_chosen_by_are_told_apart_from_namesakes(description):
    assert patients_held_out(description) == [("here", "p3"), ("here", "p4")]
    assert seen_before(description, [("here", "p4"), ("here", "p5x"), ("new", "p6")]) == []
    assert seen_before(description, [("here", "p3"), ("here", "p1")]) == [
        "'known' was trained on the patients p1, p3."
    ]
    assert seen_before(description, [("corrected", "p5"), ("corrected", "p4")]) == [
        "'known' was trained on patients of the same name, who may be the same: p5 (there)."
    ]


def test_a_held_out_case_that_an_ancestor_knew_is_not_called_unseen(description):
    def how(site, patient):
        return how_unseen(student.training.parents, Case("c", patient, site, {}, None))

    student = description
    # What a parent's parent knew counts as well, however far back.
    for generation in ("known", "child", "child"):
        record = student.training.model_copy(update={"parents": [parent_of(student, "teacher")]})
        student = student.model_copy(update={"id": "child", "training": record, "data": []})
        assert known_to(student) == [use for use in description.data if use.split != "test"]
        assert how("here", "p4") == how("there", "p1") == how("here", "p9") == "never trained on"
        for known in ("p1", "p3"):
            assert how("here", known) == (
                f"never trained on here, but '{generation}', from which it comes, was trained "
                "on it: it flatters"
            )
        assert seen_before(student, [("here", "p1")]) == [
            "'child', or a model that it comes from, was trained on the patients p1."
        ]


def test_evaluate_says_which_patients_the_model_knows(
    shipped_model, ms_cases, tmp_path, capsys, monkeypatch
):
    from medsegcore.cli import main

    known = next(u for u in shipped_model.description.data if u.split == "training")
    for site, told in ((known.name, "on the patients"), ("elsewhere", "of the same name")):
        shutil.copytree(ms_cases / "b", tmp_path / site / known.patients[0])
        command = ["evaluate", "--model", shipped_model.description.id, "--device", "cpu"]
        assert main([*command, "--data", str(tmp_path / site)]) == 0
        said = " ".join(capsys.readouterr().err.split())
        assert told in said, said
        assert known.patients[0] in said


@pytest.fixture
def trained(shipped_model):
    """What a training has written before its recipe finishes it."""
    description = shipped_model.description
    record = description.training.model_copy(
        update={
            "recipe": "edge_attention", "parents": [],
            "settings": {"depth": 10, "pretrained": "/home/me/model.safetensors", "chosen": ["x"]},
        }
    )  # fmt: skip
    free = description.weights.model_copy(update={"license": "CC BY 4.0", "commercial_use": True})
    return description.model_copy(
        update={"training": record, "weights": free, "data": [use("here", "test", "p1")]}
    )


def test_an_encoder_from_elsewhere_gives_its_lineage_its_terms_and_its_patients(
    trained, model_copy, description
):
    terms = {"license": "CC BY-NC 4.0", "commercial_use": False}
    weights = WeightsSpec(**{**description.weights.model_dump(), **terms})
    model_copy.with_description(description.model_copy(update={"weights": weights}))
    encoder = ModelFolder.read(model_copy.path)
    recipe = EdgeAttentionRecipe(pretrained=str(encoder.weights_path))
    done = recipe.finished(trained)
    (parent,) = done.training.parents
    assert (parent.id, parent.role) == ("known", "start")
    assert parent.sha256 == encoder.description.weights.sha256
    assert not done.weights.commercial_use
    assert "CC BY-NC 4.0" in done.weights.license
    assert seen_before(parent, patients_held_out(trained)) == [
        "'known' was trained on the patients p1."
    ]
    assert done.training.settings == {"depth": 10, "chosen": ["x"]}


def test_an_encoder_without_a_card_gives_no_rights(trained, model_copy):
    (model_copy.path / "model.json").unlink()
    done = EdgeAttentionRecipe(pretrained=str(model_copy.weights_path)).finished(trained)
    assert (done.weights.license, done.weights.commercial_use) == ("not stated", False)
    assert any("model.safetensors" in limit for limit in done.limits)
    assert not done.training.parents
    assert EdgeAttentionRecipe().finished(trained) == trained
    assert "pretrained" not in kept_settings(trained.training)
