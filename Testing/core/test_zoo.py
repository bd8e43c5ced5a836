"""Every shipped model: whole, small, honest, and at work on a real case."""

import numpy as np
import pytest
from scipy import ndimage

from medsegcore.imaging import Region, read_image
from medsegcore.inference import Predictor
from medsegcore.models import ModelFolder, model_card
from medsegcore.models.store import ZOO
from medsegcore.training.datasets.adapters.samples import in_hounsfield

MODELS = sorted(path.name for path in ZOO.iterdir() if (path / "model.json").is_file())
MOST_BYTES = 8e6
# A case of the shared data for each model's inputs.
CASES = {
    ("t2w",): ("prostate/prostatex/ProstateX-0000", ["t2w"], "prostate"),
    ("t2w", "adc"): ("prostate/prostatex/ProstateX-0000", ["t2w", "adc"], "prostate"),
    ("ct", "t2"): ("sarcoma/sts/STS_003", ["ct"], "tumor_on_ct"),
    ("flair", "t1"): ("ms/open_ms/patient19", ["flair", "t1"], "lesion"),
    ("t1", "t2", "flair"): ("ms/open_ms/patient19", ["flair", "t1"], "lesion"),
}


@pytest.fixture(params=MODELS)
def model(request):
    return ModelFolder.read(ZOO / request.param)


def test_it_is_whole_and_small(model):
    model.verify()
    assert model.description.id == model.path.name
    assert sum(file.stat().st_size for file in model.path.iterdir()) <= MOST_BYTES
    assert model.description.weights.dtype == "float16"


def test_its_card_is_honest(model):
    d = model.description
    card = (model.path / "README.md").read_text(encoding="utf-8")
    assert card == model_card(d)
    assert any("never trained on" in metric.how for metric in d.metrics)
    assert d.data
    assert all(use.citation for use in d.data)
    assert all(use.license in d.weights.license or not use.license for use in d.data
               if use.split == "training")  # fmt: skip
    trained_on = " ".join(use.license for use in d.data if use.split == "training")
    if "NC" in trained_on:
        assert not d.weights.commercial_use
        assert "commercial" in card
    assert d.memory_mb > 0
    assert d.limits
    # What its data were like: the brains skull-stripped, some of the prostates' masks automatic.
    assert d.skull_stripped == (d.anatomy == "brain")
    automatic = {"prostatex", "picai"} & {use.name for use in d.data if use.split == "training"}
    assert any("published AI" in limit for limit in d.limits) == bool(automatic)


def test_careful_mirrors_it_as_its_training_did(model):
    record = model.description.training
    settings, name = record.settings, record.recipe
    if name == "distill":
        name, settings = (
            settings["teacher_recipe"]["recipe"],
            settings["teacher_recipe"]["settings"],
        )
    flips = {"i"} if settings.get("augment") == "scanner" or settings.get("scanner") else set()
    expected = {"k", "j", "i"} if name in ("rsanet", "unet") else flips
    assert {*model.description.grid.mirror} == expected


def test_it_finds_something_in_the_middle_of_what_it_is_for(model, shared_data):
    folder, keys, mask = CASES[tuple(spec.key for spec in model.description.inputs)]
    paths = {key: shared_data / folder / f"{key}.nii.gz" for key in [*keys, mask]}
    if not all(path.is_file() for path in paths.values()):
        pytest.skip(f"{folder} is not here")
    reference = read_image(paths.pop(mask))
    parts, _ = ndimage.label(reference.array)
    largest = parts == np.bincount(parts.ravel())[1:].argmax() + 1
    box = np.eye(4)
    box[:3, 3] = reference.grid.to_ras(np.argwhere(largest).mean(axis=0)[::-1])
    # The shared CT is of 8 bits, the models know HU.
    images = {
        key: in_hounsfield(path) if key == "ct" else read_image(path) for key, path in paths.items()
    }
    result = Predictor(model, "cpu").predict(
        images, attention=False, region=Region(box, (40.0, 40.0, 20.0))
    )
    found = {*np.unique(result.labelmap).tolist()} - {0}
    assert found
    assert found <= {label.value for label in model.description.labels}
