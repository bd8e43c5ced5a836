"""Models that take one of their inputs: the one that is given is the reference and the channel."""

import json

import numpy as np
import pytest
import torch

from medsegcore.cli import main
from medsegcore.errors import MissingInputError, ModelSchemaError
from medsegcore.imaging import Image, read_image, resample, write_image
from medsegcore.inference import Predictor
from medsegcore.inference.preprocess import prepare, with_neighbours
from medsegcore.models import ModelDescription, ModelFolder
from medsegcore.models.card import model_card
from medsegcore.models.matching import VolumeFacts, match_inputs
from medsegcore.networks import create_network

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def answers(ct_or_mr_model, abdomen):
    predictor = Predictor(ct_or_mr_model, device="cpu", precision="fp32")
    return {key: predictor.predict({key: image}) for key, image in abdomen.items()}


@pytest.mark.parametrize(("key", "number"), [("ct", 0), ("mr", 1)])
def test_the_network_is_told_which_modality_the_given_image_is(
    ct_or_mr_model, abdomen, answers, key, number
):
    prepared = prepare(ct_or_mr_model.description, {key: abdomen[key]})
    assert prepared.tensor.shape[0] == 1
    assert prepared.options == {"modality": number}
    _, j, i = prepared.tensor.shape[1:]
    stacked = with_neighbours(prepared.tensor, 1)
    padded = np.pad(stacked, ((0, 0), (0, 0), (0, -j % 8), (0, -i % 8)))
    slices = torch.from_numpy(padded).transpose(0, 1)
    network = ct_or_mr_model.load_network()
    restored = []
    for modality in (number, 1 - number):
        with torch.no_grad():
            liver = torch.softmax(network(slices, modality=modality), 1)[:, 1, :j, :i].numpy()
        on_model_grid = Image(liver, prepared.grid.affine)
        restored.append(resample(on_model_grid, abdomen[key].grid).array)
    expected, other = restored
    np.testing.assert_allclose(answers[key].probabilities["liver"], expected, atol=1e-3)
    assert np.abs(other - expected).max() > 0.1
    assert answers[key].grid.same_as(abdomen[key].grid)
    assert answers[key].provenance["missing_inputs"] == []


def test_a_window_makes_air_the_background_whatever_the_units_below_zero(ct_or_mr_model, abdomen):
    description, ct = ct_or_mr_model.description, abdomen["ct"]
    prepared = prepare(description, {"ct": ct})
    tensor = prepared.tensor[0]
    array = resample(ct, prepared.grid).array.astype(np.float32)
    cut = np.clip(array, -200, 300) + 200
    inside = cut > 0.02 * np.percentile(cut[cut > 0], 99.5)
    # Fat (-100 HU) is inside; without the window it would be air.
    fat = (array > -120) & (array < -80)
    assert fat.any()
    assert (tensor[fat] != 0).all()
    assert not tensor[array < -200].any()
    expected = (cut - cut[inside].mean()) / cut[inside].std()
    np.testing.assert_allclose(tensor[inside], expected[inside], atol=2e-3)


def test_eight_bit_images_without_a_real_voxel_size_are_answered_too(
    ct_or_mr_model, shared_data, tmp_path
):
    folder = shared_data / "sarcoma" / "sts" / "STS_003"
    if not folder.is_dir():
        pytest.skip("the sarcoma data are not here")
    ct = read_image(folder / "ct.nii.gz")
    result = Predictor(ct_or_mr_model, device="cpu").predict({"ct": ct}, attention=False)
    assert result.labelmap.shape == ct.shape
    assert all(np.isfinite(p).all() for p in result.probabilities.values())


def test_none_and_two_are_refused_with_what_to_do(ct_or_mr_model, abdomen):
    predictor = Predictor(ct_or_mr_model, device="cpu")
    with pytest.raises(MissingInputError, match=r"got none. Give one of: ct \(CT\), mr \(MR\)"):
        predictor.predict({})
    with pytest.raises(MissingInputError, match="takes one of its inputs and got ct and mr"):
        predictor.predict(abdomen)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.update(reference="ct"),
        lambda c: c["inputs"][0].update(required=True),
        lambda c: c.update(missing_input="zero"),
        lambda c: c["inputs"][0]["normalisation"].update(window=[300, -200]),
    ],
)
def test_descriptions_that_contradict_themselves_are_refused(ct_or_mr_model, change):
    content = ct_or_mr_model.description.model_dump(mode="json")
    change(content)
    with pytest.raises(ValueError, match=r"one_of|none of the inputs|window"):
        ModelDescription.model_validate(content)


def with_network(folder, path, name, config):
    """A copy of a model folder with another network, which has learnt nothing."""
    network = create_network(name, config)
    content = folder.description.model_dump(mode="json")
    content |= {"network": {"name": name, "config": config}, "attention": network.attention}
    return ModelFolder.write(path, ModelDescription.model_validate(content), network)


def test_a_network_that_tells_other_modalities_apart_is_refused(ct_or_mr_model, tmp_path):
    config = {"width": 2, "out_channels": 3, "modalities": 3}
    folder = with_network(ct_or_mr_model, tmp_path / "m", "ummkd_2d", config)
    with pytest.raises(ModelSchemaError, match=r"one of 2 inputs .* tells 3 modalities apart"):
        Predictor(folder, device="cpu")


def test_one_network_for_all_is_given_either_image_alone(ct_or_mr_model, abdomen, tmp_path):
    config = {"width": 2, "dimensions": 2, "in_channels": 3, "out_channels": 3}
    folder = with_network(ct_or_mr_model, tmp_path / "m", "unet", config)
    predictor = Predictor(folder, device="cpu", precision="fp32")
    network = folder.load_network()
    for key, image in abdomen.items():
        prepared = prepare(folder.description, {key: image})
        _, j, i = prepared.tensor.shape[1:]
        stacked = with_neighbours(prepared.tensor, 1)
        padded = np.pad(stacked, ((0, 0), (0, 0), (0, -j % 8), (0, -i % 8)))
        with torch.no_grad():
            logits = network(torch.from_numpy(padded).transpose(0, 1))
        liver = torch.softmax(logits, 1)[:, 1, :j, :i].numpy()
        expected = resample(Image(liver, prepared.grid.affine), image.grid).array
        result = predictor.predict({key: image}, attention=False)
        np.testing.assert_allclose(result.probabilities["liver"], expected, atol=1e-3)


def test_one_volume_is_proposed_for_one_input(ct_or_mr_model):
    d = ct_or_mr_model.description
    only = match_inputs(d, [VolumeFacts("Abdomen MR", modality="MR"), VolumeFacts("scout")])
    assert (only["mr"].index, only["ct"].index) == (0, None)
    assert not only["mr"].ambiguous
    # Which of two the user wants is the user's to say.
    both = match_inputs(d, [VolumeFacts("x mr", modality="MR"), VolumeFacts("x ct", modality="CT")])
    chosen = [match for match in both.values() if match.index is not None]
    assert len(chosen) == 1
    assert chosen[0].ambiguous


def test_the_card_says_that_one_is_enough(ct_or_mr_model):
    assert model_card(ct_or_mr_model.description).count("exactly one of these") == 2


def test_the_command_line_takes_either_image(ct_or_mr_model, abdomen, answers, tmp_path, capsys):
    file = tmp_path / "mr.nii.gz"
    write_image(abdomen["mr"], file)
    model = str(ct_or_mr_model.path)
    out = tmp_path / "r"
    assert main(["predict", "--model", model, "--mr", str(file), "--out", str(out),
                 "--device", "cpu", "--json"]) == 0  # fmt: skip
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert list(result["provenance"]["inputs"]) == ["mr"]
    capsys.readouterr()
    assert main(["predict", "--model", model, "--mr", str(file), "--ct", str(file),
                 "--out", str(tmp_path / "q")]) == 3  # fmt: skip
    assert "takes one of its inputs and got" in capsys.readouterr().err
