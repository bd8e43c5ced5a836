"""Where the tests find data and models. Fixtures hold the data, tests hold the logic."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import numpy as np
import pytest

PROJECT = Path(__file__).resolve().parents[1]
SAMPLE = PROJECT / "Testing" / "data" / "ms_sample"
SHARED = Path(os.environ.get("MEDSEG_SHARED_DATA", PROJECT.parent / "shared" / "data"))
sys.path.insert(0, str(PROJECT / "SlicerMedSeg"))


@pytest.fixture(scope="session")
def ms_case_dir() -> Path:
    """A real patient: t1, t2, flair and lesion .nii.gz on one 1 mm grid."""
    return SAMPLE


@pytest.fixture(scope="session")
def ms_images(ms_case_dir):
    """The sample's t1, t2 and flair as Images by key."""
    from medsegcore.imaging import read_image

    return {key: read_image(ms_case_dir / f"{key}.nii.gz") for key in ("t1", "t2", "flair")}


@pytest.fixture(scope="session")
def ms_reference(ms_case_dir):
    """The sample's reference mask, bool."""
    from medsegcore.imaging import read_image

    mask = read_image(ms_case_dir / "lesion.nii.gz")
    return mask.with_array(mask.array > 0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The development data, where they are at hand."""
    if not SHARED.is_dir():
        pytest.skip("the development data are not here")
    return SHARED


@pytest.fixture(scope="session")
def ms_visits(shared_data):
    """Two visits of one patient, where the lesions are: [{key: Image}], all on one grid."""
    from medsegcore.imaging import Image, read_image

    folder = shared_data / "ms" / "mslesseg"
    if not (folder / "P14_T3").is_dir():
        pytest.skip("the two visits are not here")
    mask = read_image(folder / "P14_T2" / "lesion.nii.gz").array > 0
    middle = np.argwhere(mask).mean(axis=0).astype(int)
    box = tuple(slice(m - h, m + h) for m, h in zip(middle, (12, 20, 20), strict=True))
    visits = []
    for visit in ("P14_T2", "P14_T3"):
        images = {k: read_image(folder / visit / f"{k}.nii.gz") for k in ("t1", "t2", "flair")}
        visits.append(
            {k: Image(i.array[box], i.grid.crop(box).affine, k) for k, i in images.items()}
        )
    return visits


@pytest.fixture(scope="session")
def make_sequence():
    """`make_sequence(core, browser, name, images)`: a sequence in the scene; gives its proxy."""
    from SlicerMedSegLib.SceneConversion import volumeNodeFromImage

    def make(core, browser, name, images):
        sequence = core.scene.AddNewNodeByClass("vtkMRMLSequenceNode", name)
        sequence.SetIndexName("visit")
        sequence.SetIndexUnit("")
        for n, image in enumerate(images):
            frame = volumeNodeFromImage(image, name, core.scene)
            sequence.SetDataNodeAtValue(frame, str(n + 2))
            core.scene.RemoveNode(frame)
        browser.AddSynchronizedSequenceNode(sequence)
        core.logics["Sequences"].UpdateProxyNodesFromSequences(browser)
        return browser.GetProxyNode(sequence)

    return make


@pytest.fixture(scope="session")
def shipped_model():
    """The shipped MS lesion model."""
    from medsegcore.models import ModelStore

    return ModelStore(SAMPLE / "none").find("ms-lesion-rsanet")


@pytest.fixture
def zoo_of_one(shipped_model, tmp_path, monkeypatch):
    """Nothing but the MS lesion model is shipped, for what counts models."""
    zoo = tmp_path / "zoo"
    zoo.mkdir()
    (zoo / shipped_model.path.name).symlink_to(shipped_model.path)
    monkeypatch.setattr("medsegcore.models.store.ZOO", zoo)


@pytest.fixture(scope="session")
def predictor(shipped_model):
    """The shipped model, ready on the CPU."""
    from medsegcore.inference import Predictor

    return Predictor(shipped_model, device="cpu")


@pytest.fixture(scope="session")
def ms_result(predictor, ms_images):
    """The shipped model's answer for the sample."""
    return predictor.predict(ms_images)


@pytest.fixture
def model_copy(shipped_model, tmp_path):
    """A copy of the shipped model that a test may damage."""
    import shutil

    from medsegcore.models import ModelFolder

    target = tmp_path / "model" / shipped_model.path.name
    shutil.copytree(shipped_model.path, target)
    return ModelFolder.read(target)


def resultFrom(probabilities, images, minMl=0.0, attention=(), threshold=0.5, affine=None):
    """A Result as a predictor makes it, from probabilities by label name."""
    from medsegcore.inference import Result
    from medsegcore.inference.lesions import find_lesions, label_voxels
    from medsegcore.models.schema import Label

    grid = images["flair"].grid
    if affine is not None:
        grid = type(grid)(grid.shape, affine)
    colors = [(230, 159, 0), (86, 180, 233), (0, 158, 115)]
    labels = [
        Label(value=n, name=name, color=colors[n - 1], threshold=threshold)
        for n, name in enumerate(probabilities, 1)
    ]
    cut = {label.name: threshold for label in labels}
    labelmap, lesions = find_lesions(
        label_voxels(labels, probabilities, cut), grid, labels, probabilities,
        {key: image.array for key, image in images.items()}, minMl,
    )  # fmt: skip
    return Result(
        grid=grid, labels=labels, probabilities=probabilities, labelmap=labelmap,
        attention=list(attention), lesions=lesions,
        settings={"thresholds": cut, "min_lesion_ml": minMl}, provenance={"inputs": {}},
    )  # fmt: skip


@pytest.fixture(scope="session")
def rater_probability(ms_reference):
    """The raters' mask blurred by 1 mm: float32, 0..1, 0.5 on the lesions' borders."""
    from scipy import ndimage

    mask = ms_reference.array.astype(np.float32)
    return np.clip(ndimage.gaussian_filter(mask, 1.0), 0, 1)


@pytest.fixture(scope="session")
def make_result():
    """`resultFrom`."""
    return resultFrom


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


@pytest.fixture(scope="session")
def slice_attention(ms_images):
    """Which slices of the real FLAIR look alike, in slabs of four, as a matrix of attention."""
    from medsegcore.imaging import reorient
    from medsegcore.inference import SliceAttention

    image = reorient(ms_images["flair"], "RAS")
    slabs = image.array[:124].reshape(31, 4, *image.shape[1:]).mean(axis=1)[:, ::4, ::4]
    features = slabs.reshape(31, -1) / 300.0
    features -= features.mean(axis=1, keepdims=True)
    centers = np.array([image.grid.to_ras([68.5, 78, 4 * n + 1.5]) for n in range(31)])
    return SliceAttention(
        "rsa_axial", "Slice attention, axial", "axial",
        softmax(features @ features.T / 300).astype(np.float32), centers, np.array([0, 0, 1.0]),
    )  # fmt: skip


@pytest.fixture(scope="session")
def correlation_attention(ms_images):
    """Where the FLAIR answers to each position of the T1, in blocks of 8 mm, by intensity."""
    from medsegcore.imaging import reorient
    from medsegcore.inference import CorrelationAttention

    keys = {}
    for key in ("t1", "flair"):
        image = reorient(ms_images[key], "RAS")
        slices = image.array[40:72:8, :152, :136].astype(np.float32)
        blocks = slices.reshape(4, 19, 8, 17, 8)
        features = np.stack([blocks.mean(axis=(2, 4)), blocks.std(axis=(2, 4))], axis=-1)
        features = features.reshape(4, -1, 2)
        keys[key] = (features - features.mean(axis=1, keepdims=True)) / features.std(axis=1)[
            :, None
        ]
    maps = softmax(np.einsum("kpf,kqf->kpq", keys["t1"], keys["flair"]))
    grid = reorient(ms_images["flair"], "RAS").grid
    affine = grid.affine @ np.diag([8.0, 8, 8, 1])
    affine[:3, 3] = grid.to_ras([3.5, 3.5, 40])
    return CorrelationAttention(
        "scff", "T1 to FLAIR", maps.reshape(4, 19, 17, 19, 17).astype(np.float16), affine
    )


@pytest.fixture(scope="session")
def ct_or_mr_model(shipped_model, tmp_path_factory):
    """A model folder that takes a CT or an MR of the abdomen: UMMKD with random weights."""
    import torch

    from medsegcore.models import ModelFolder
    from medsegcore.networks import create_network

    config = {"width": 2, "out_channels": 3}
    torch.manual_seed(7)
    network = create_network("ummkd_2d", config)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    content = shipped_model.description.model_dump(mode="json")
    window = {"ct": [-200, 300], "mr": None}
    content |= {
        "id": "ct-or-mr", "title": "Organs in CT or MR", "skull_stripped": False,
        "network": {"name": "ummkd_2d", "config": config}, "attention": list(network.attention),
        "inputs": [
            {"key": key, "title": key.upper(), "modality": key.upper(), "required": False,
             "match": {"names": [rf"\b{key}\b"]},
             "normalisation": {"method": "zscore", "window": window[key]}}
            for key in ("ct", "mr")
        ],
        "reference": None, "missing_input": "one_of",
        "grid": {"spacing": [3, 3, 3], "tile": [8, 128, 128], "dimensionality": "2.5D",
                 "neighbours": 1, "multiple": 8, "crop": "none"},
        "labels": [{"value": 1, "name": "liver", "color": [221, 130, 101]},
                   {"value": 2, "name": "spleen", "color": [157, 108, 162]}],
        "weights": {**content["weights"], "dtype": "float32"},
    }  # fmt: skip
    description = type(shipped_model.description).model_validate(content)
    folder = tmp_path_factory.mktemp("models") / "ct-or-mr"
    return ModelFolder.write(folder, description, network)


@pytest.fixture(scope="session")
def abdomen(shared_data):
    """A CT and an MR of the abdomen of two patients, cut to a few slices, by key."""
    from medsegcore.imaging import Image, read_image

    images = {}
    for key in ("ct", "mr"):
        file = shared_data / "abdomen_samples" / f"{key}_example" / f"{key}.nii.gz"
        if not file.is_file():
            pytest.skip("the abdomen samples are not here")
        image = read_image(file)
        box = (slice(10, 16), slice(0, image.shape[1]), slice(0, image.shape[2]))
        images[key] = Image(image.array[box], image.grid.crop(box).affine)
    return images


TINY = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "{name}"
version = "{version}"
dependencies = {needs}

[tool.setuptools]
py-modules = ["{module}"]
"""


@pytest.fixture(scope="session")
def wheels(tmp_path_factory):
    """A folder with real wheels: medseg-tiny 1.2, which needs medseg-base, in 1.0 and 1.1."""
    made, sources = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("sources")
    for name, version, needs in (
        ("medseg-base", "1.0", []), ("medseg-base", "1.1", []),
        ("medseg-tiny", "1.2", ["medseg-base>=1.0"]),
    ):  # fmt: skip
        source, module = sources / f"{name}-{version}", name.replace("-", "_")
        source.mkdir()
        text = TINY.format(name=name, version=version, needs=needs, module=module)
        (source / "pyproject.toml").write_text(text)
        (source / f"{module}.py").write_text(f'version = "{version}"\n')
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index",
         "--quiet", "--wheel-dir", made, *sorted(sources.iterdir())[1:]], check=True,
    )  # fmt: skip
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index",
         "--quiet", "--wheel-dir", made, sources / "medseg-base-1.0"], check=True,
    )  # fmt: skip
    return made


class Fresh:
    """A new virtual environment whose packages this Python sees too.

    Attributes:
        program: runs like its Python for `-m pip ...` alone.
    """

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False)
        paths = {"base": str(folder), "platbase": str(folder)}
        self.packages = Path(sysconfig.get_path("purelib", vars=paths))
        python = folder / "bin" / "python"
        self.program = folder / "bin" / "PythonSlicer"
        self.program.write_text(
            f'#!/bin/sh\nshift 2\nexec "{sys.executable}" -m pip --python "{python}" "$@"\n'
        )
        self.program.chmod(0o755)


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """A `Fresh`; what is installed there can be found and imported in the test."""
    made = Fresh(tmp_path / "fresh")
    monkeypatch.syspath_prepend(str(made.packages))
    yield made
    for name in ("medseg_tiny", "medseg_base"):
        sys.modules.pop(name, None)
