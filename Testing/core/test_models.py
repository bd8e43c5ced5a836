"""Model folders: what is whole loads, what is not is refused in a sentence and leaves nothing."""

import json
import shutil
import stat
import zipfile

import numpy as np
import pytest
import torch

from medsegcore.errors import (
    ModelArchiveError,
    ModelChecksumError,
    ModelError,
    ModelNotFoundError,
    ModelSchemaError,
    ModelWeightsError,
    OutputError,
)
from medsegcore.models import ModelFolder, ModelStore, model_card, pack, unpack
from medsegcore.models.schema import SCHEMA_FILE, ModelDescription, json_schema
from medsegcore.networks import create_network


def rewrite(folder: ModelFolder, change) -> None:
    content = json.loads((folder.path / "model.json").read_text(encoding="utf-8"))
    change(content)
    (folder.path / "model.json").write_text(json.dumps(content))


def test_the_shipped_model_is_sound_small_and_half_precision(shipped_model):
    shipped_model.verify()
    assert shipped_model.description.weights.dtype == "float16"
    assert shipped_model.weights_path.stat().st_size <= 8_000_000
    assert (shipped_model.path / "README.md").read_text(encoding="utf-8") == model_card(
        shipped_model.description
    )


def test_the_shipped_model_says_that_patient19_was_not_trained_on(shipped_model):
    uses = {use.split: use for use in shipped_model.description.data if use.name == "open_ms"}
    assert "patient19" in uses["test"].patients
    assert all(
        "patient19" not in use.patients
        for use in shipped_model.description.data
        if use.split != "test"
    )


def test_the_json_schema_file_is_what_the_code_says():
    assert SCHEMA_FILE.read_text(encoding="utf-8") == json_schema()


def test_writing_and_reading_give_the_same_network(shipped_model, tmp_path):
    network = shipped_model.load_network()
    written = ModelFolder.write(tmp_path / "m", shipped_model.description, network)
    again = ModelFolder.read(tmp_path / "m")
    assert again.description == written.description
    x = torch.randn(1, 3, 16, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(again.load_network()(x), network(x), rtol=0, atol=0)
    with pytest.raises(OutputError, match="exists already"):
        ModelFolder.write(tmp_path / "m", shipped_model.description, network)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(version="one"), "version"),
        (lambda c: c.update(surprise=1), "surprise"),
        (lambda c: c["weights"].update(file="../../evil.safetensors"), "weights.file"),
        (lambda c: c["weights"].update(file="weights.pt"), "weights.file"),
        (lambda c: c.update(reference="adc"), "'adc' is none of the inputs"),
        (lambda c: c["labels"].append(c["labels"][0]), "there twice"),
        (lambda c: c["grid"].update(spacing=[1, 0, 1]), "grid.spacing"),
        (lambda c: c["inputs"][0]["match"].update(names=["("]), "no regular expression"),
        (lambda c: c["inputs"][2].update(required=False), "has to be required"),
    ],
)
def test_a_description_against_the_schema_is_refused_by_name(model_copy, change, words):
    rewrite(model_copy, change)
    with pytest.raises(ModelSchemaError, match=words):
        ModelFolder.read(model_copy.path)


def test_no_json_and_no_folder_are_refused(model_copy, tmp_path):
    (model_copy.path / "model.json").write_text("{")
    with pytest.raises(ModelSchemaError):
        ModelFolder.read(model_copy.path)
    with pytest.raises(ModelNotFoundError, match="absent"):
        ModelFolder.read(tmp_path / "absent")


def test_truncated_weights_are_named_as_such(model_copy):
    whole = model_copy.weights_path.read_bytes()
    for size in (len(whole) - 1, 1000, 4, 0):
        model_copy.weights_path.write_bytes(whole[:size])
        with pytest.raises(ModelWeightsError, match="truncated"):
            model_copy.load_network()
    model_copy.weights_path.unlink()
    with pytest.raises(ModelWeightsError, match="missing"):
        model_copy.verify()


def test_changed_weights_fail_their_checksum(model_copy):
    content = bytearray(model_copy.weights_path.read_bytes())
    content[-1] ^= 1
    model_copy.weights_path.write_bytes(content)
    with pytest.raises(ModelChecksumError, match="SHA-256"):
        model_copy.load_network()


def test_weights_of_another_network_are_named_by_tensor(model_copy):
    rewrite(model_copy, lambda c: c["network"]["config"].update(out_channels=3))
    with pytest.raises(ModelWeightsError, match=r"head\.1\.bias has shape \(2,\)"):
        ModelFolder.read(model_copy.path).verify()


def test_a_pickle_in_place_of_the_weights_is_never_loaded(model_copy, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (tmp_path.joinpath("exploded").touch, ())

    torch.save(Bomb(), model_copy.weights_path)
    with pytest.raises(ModelWeightsError):
        model_copy.load_network()
    assert not (tmp_path / "exploded").exists()


def test_packing_and_unpacking_keep_every_byte(shipped_model, tmp_path):
    path = pack(shipped_model, tmp_path / "m.zip")
    again = unpack(path, tmp_path / "models")
    for file in ("model.json", "model.safetensors", "README.md"):
        assert (again.path / file).read_bytes() == (shipped_model.path / file).read_bytes()
    with pytest.raises(OutputError, match="exists already"):
        unpack(path, tmp_path / "models")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.zip", "models"]


def zip_with(path, shipped_model, extra, replace=None):
    with zipfile.ZipFile(path, "w") as archive:
        for file in ("model.json", "model.safetensors"):
            archive.writestr(f"m/{file}", (replace or {}).get(file) or
                             (shipped_model.path / file).read_bytes())  # fmt: skip
        for name, content in extra:
            archive.writestr(name, content)


def link(name):
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ([("../evil.safetensors", b"x")], "outside"),
        ([("/tmp/evil.safetensors", b"x")], "outside"),
        ([("m\\..\\..\\evil.safetensors", b"x")], "outside"),
        ([("C:/evil.safetensors", b"x")], "outside"),
        ([(link("m/more.safetensors"), b"/etc/passwd")], "is a link"),
        ([("m/run.py", b"print()")], "does not belong"),
        ([("m/deep/er/x.safetensors", b"x")], "does not belong"),
        ([("m/zeros.safetensors", bytes(20_000_000))], "beyond reason"),
    ],
)
def test_an_unsafe_zip_is_refused_and_leaves_nothing(shipped_model, tmp_path, extra, words):
    path = tmp_path / "a" / "m.zip"
    path.parent.mkdir()
    if words == "beyond reason":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(*extra[0])
    else:
        zip_with(path, shipped_model, extra)
    with pytest.raises(ModelArchiveError, match=words):
        unpack(path, tmp_path / "models")
    assert [p.name for p in tmp_path.rglob("*")] == ["a", "m.zip"]


def test_a_zip_with_damaged_content_leaves_nothing(shipped_model, tmp_path):
    weights = bytearray((shipped_model.path / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    zip_with(tmp_path / "m.zip", shipped_model, [], {"model.safetensors": bytes(weights)})
    with pytest.raises(ModelChecksumError):
        unpack(tmp_path / "m.zip", tmp_path / "models")
    (tmp_path / "cut.zip").write_bytes((tmp_path / "m.zip").read_bytes()[:5000])
    with pytest.raises(ModelArchiveError, match=r"no \.zip"):
        unpack(tmp_path / "cut.zip", tmp_path / "models")
    assert not (tmp_path / "models").exists() or not any((tmp_path / "models").iterdir())


def test_the_store_finds_adds_reports_and_removes(shipped_model, model_copy, tmp_path):
    store = ModelStore(tmp_path / "user")
    assert store.find("ms-lesion-rsanet").path == shipped_model.path
    rewrite(model_copy, lambda c: c.update(id="mine"))
    assert store.add(model_copy.path).path == tmp_path / "user" / "mine"
    assert store.find("mine").description.id == "mine"
    with pytest.raises(OutputError, match=r"version 1\.0\.0 of 'mine' already"):
        store.add(model_copy.path)
    again = store.add(model_copy.path, "mine-2")
    assert (again.path, store.find("mine-2").description.id) == (store.user / "mine-2", "mine-2")
    again.verify()
    assert again.description.title == model_copy.description.title
    assert model_card(again.description) == (again.path / "README.md").read_text(encoding="utf-8")
    packed = store.add(pack(again, tmp_path / "again.zip"), "mine-3")
    assert packed.description.weights == again.description.weights
    with pytest.raises(ModelSchemaError, match="cannot be the id"):
        store.add(model_copy.path, "../mine")
    broken = tmp_path / "user" / "broken"
    shutil.copytree(model_copy.path, broken)
    (broken / "model.json").write_text("{}")
    problems = {m.path.name: m.problem for m in store.list()}
    assert problems["mine"] is None
    assert "no valid model description" in problems["broken"]
    store.remove("mine")
    with pytest.raises(ModelNotFoundError, match="Known models: mine-2, mine-3, ms-lesion-"):
        store.find("mine")
    with pytest.raises(ModelError, match="stays"):
        store.remove("ms-lesion-rsanet")


def test_the_card_holds_the_figures_and_says_where_they_come_from(shipped_model):
    card = model_card(shipped_model.description)
    dice = next(m for m in shipped_model.description.metrics
                if m.name == "Dice" and m.case == "patient19")  # fmt: skip
    assert f"{dice.value:.3g}" in card
    assert "never trained on" in card
    assert "best threshold Dice" in card
    for use in shipped_model.description.data:
        assert use.citation in card


def test_descriptions_never_change(shipped_model):
    with pytest.raises(ValueError, match="frozen"):
        shipped_model.description.version = "2.0.0"
    copy = ModelDescription.model_validate_json(shipped_model.description.model_dump_json())
    assert copy == shipped_model.description
    assert np.isfinite([m.value for m in copy.metrics if m.value is not None]).all()


def test_buffers_stay_fp32_and_weights_that_fp16_cannot_hold_are_refused(shipped_model, tmp_path):
    d = shipped_model.description
    spec = d.network.model_copy(update={"config": {**d.network.config, "norm": "batch"}})
    network = create_network(spec.name, spec.config)
    description = d.model_copy(update={"network": spec})
    norm = next(m for m in network.modules() if isinstance(m, torch.nn.BatchNorm3d))
    norm.running_var.fill_(1e6)
    written = ModelFolder.write(tmp_path / "m", description, network)
    again = next(m for m in written.load_network().modules() if isinstance(m, type(norm)))
    assert (again.running_var == 1e6).all()
    with torch.no_grad():
        norm.weight.fill_(1e6)
    with pytest.raises(ModelWeightsError, match="are not finite in float16"):
        ModelFolder.write(tmp_path / "n", description, network)
    assert not (tmp_path / "n").exists()
