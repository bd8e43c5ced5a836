"""The worker runs several models one after the other, as `EnsemblePredictor` does."""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import medsegcore
from medsegcore.errors import (
    CancelledError,
    ModelError,
    ModelNotFoundError,
    OtherModelError,
    SettingError,
)
from medsegcore.imaging import Image
from medsegcore.inference import EnsemblePredictor
from medsegcore.models import ModelFolder
from medsegcore.worker.client import WorkerClient
from medsegcore.worker.protocol import RunOptions

MODEL = "ms-lesion-rsanet"
CPU = {"device": "cpu"}
RELAY = Path(__file__).resolve().parents[1] / "worker_relay.py"
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(Path(medsegcore.__file__).parents[1]),
}


@pytest.fixture(scope="module")
def small(ms_images):
    box = (slice(60, 76), slice(60, 108), slice(50, 98))
    return {
        key: Image(image.array[box], image.grid.crop(box).affine)
        for key, image in ms_images.items()
    }


@pytest.fixture(scope="module")
def worker():
    client = WorkerClient([sys.executable, "-m", "medsegcore.worker"], ENVIRONMENT)
    yield client
    client.close()


@pytest.fixture(scope="module")
def other(shipped_model, tmp_path_factory):
    """The shipped model with slightly other weights and under another id."""
    network = shipped_model.load_network()
    with torch.no_grad():
        for weights in network.parameters():
            weights *= 1.02
    description = shipped_model.description.model_copy(update={"id": "fold-2"})
    return ModelFolder.write(tmp_path_factory.mktemp("models") / "fold-2", description, network)


def test_the_worker_answers_as_the_ensemble_and_names_all_models(
    worker, small, shipped_model, other
):
    expected = EnsemblePredictor([shipped_model, other], "cpu").predict(small, uncertainty=True)
    told = []
    options = {**CPU, "ensemble": [str(other.path)], "uncertainty": True}
    result = worker.wait(
        worker.predict(MODEL, small, options, progress=lambda *event: told.append(event))
    )
    assert [m["id"] for m in result.provenance["models"]] == [MODEL, "fold-2"]
    assert [a.key for a in result.attention] == [a.key for a in expected.attention]
    (ours, theirs) = (
        next(a for a in found.attention if a.key == "uncertainty_ensemble")
        for found in (result, expected)
    )
    assert theirs.values.max() > 0.01
    assert ours.unit == theirs.unit
    np.testing.assert_allclose(ours.values, theirs.values, atol=1e-5)
    for name, array in expected.probabilities.items():
        np.testing.assert_allclose(result.probabilities[name], array, atol=1e-5)
    assert [stage for stage, *_ in told].count("load") == 4
    # The second model is half of the work.
    done = [d / t for stage, d, t, _left in told if stage == "segment"]
    assert done == sorted(done)
    assert {0.0, 0.5, 1.0} <= set(done)


def named(folder, **changes):
    description = folder.description
    found = {"id": description.id, "version": description.version}
    return {**found, "sha256": description.weights.sha256, **changes}


@pytest.fixture
def remote(tmp_path, other):
    """A worker that sees none of our folders; on its computer the user has `other`, too."""
    shutil.copytree(other.path, tmp_path / "MedSeg" / "models" / "fold-2")
    relay = [sys.executable, str(RELAY), sys.executable, "-m", "medsegcore.worker"]
    client = WorkerClient(relay, {**ENVIRONMENT, "XDG_DATA_HOME": str(tmp_path)})
    yield client
    client.close()


def test_an_ensemble_runs_on_another_computer_by_the_ids_of_its_models(
    worker, remote, small, shipped_model, other
):
    asked = {
        "model": str(shipped_model.path), "images": small,
        "options": {**CPU, "ensemble": [str(other.path)]},
        "wanted": [named(shipped_model), named(other)],
    }  # fmt: skip
    here, there = (client.wait(client.predict(**asked)) for client in (worker, remote))
    assert remote.info["shared"] is False
    assert there.provenance["models"] == here.provenance["models"]
    for name, array in here.probabilities.items():
        np.testing.assert_allclose(there.probabilities[name], array, atol=1e-5)


@pytest.mark.parametrize(("changes", "text"), [
    ({"version": "9.9.9"}, "but 'fold-2' version 9.9.9 with"),
    ({"sha256": 64 * "a"}, "with the weights aaaaaaaa was asked for"),
])  # fmt: skip
def test_another_version_than_the_one_that_was_chosen_is_refused(
    remote, small, shipped_model, other, changes, text
):
    for ensemble in ([], [str(other.path)]):
        models = [shipped_model, other] if ensemble else [other]
        wanted = [named(model) for model in models]
        wanted[-1] |= changes
        request = remote.predict(
            str(models[0].path), small, {**CPU, "ensemble": ensemble}, wanted=wanted
        )
        with pytest.raises(OtherModelError, match=text) as raised:
            remote.wait(request)
        version = other.description.version
        assert f"The worker has the model 'fold-2' version {version}" in str(raised.value)
        assert "Copy the model's folder" in raised.value.action


def test_a_model_that_the_other_computer_lacks_is_named_by_its_id(remote, small, other):
    request = remote.predict(str(other.path), small, CPU, wanted=[named(other, id="fold-3")])
    with pytest.raises(ModelNotFoundError, match="worker has no model 'fold-3'"):
        remote.wait(request)


def test_a_run_of_several_models_is_cancelled_in_the_second(worker, small, other):
    told = []

    def cancelled():
        return any(stage == "segment" and done / total >= 0.5 for stage, done, total, _ in told)

    request = worker.predict(
        MODEL, small, {**CPU, "ensemble": [str(other.path)]}, lambda *event: told.append(event)
    )
    with pytest.raises(CancelledError):
        worker.wait(request, cancelled)
    assert worker.running


def test_models_that_cannot_be_averaged_are_refused(worker, small, model_copy):
    label = model_copy.description.labels[0].model_copy(update={"name": "infarct"})
    model_copy.with_description(
        model_copy.description.model_copy(update={"id": "infarcts", "labels": [label]})
    )
    for model, error, words in (
        (str(model_copy.path), ModelError, "'infarcts' has other inputs or labels"),
        ("absent", ModelNotFoundError, "no model 'absent'"),
    ):
        with pytest.raises(error, match=words):
            worker.wait(worker.predict(MODEL, small, {**CPU, "ensemble": [model]}))
    with pytest.raises(SettingError, match="not of its type"):
        RunOptions(ensemble="fold-2")
    assert RunOptions.of(RunOptions(ensemble=("fold-2",)).to_json()).ensemble == ("fold-2",)
