"""The volumes of a scene find their inputs, by DICOM headers and by names."""

import datetime

import numpy as np
import pytest
import SimpleITK as sitk
import slicer

from medsegcore.imaging import Image, grid_with_spacing, resample, to_sitk
from SlicerMedSegLib.InputMatcher import INSTANCE_UIDS, DatabaseTags, InputMatcher, applicationTags
from SlicerMedSegLib.ResultToScene import ROLE
from SlicerMedSegLib.SceneConversion import volumeNodeFromImage


class FileTags:
    """Reads DICOM files by the UID that they carry."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {}
        self.reads = 0

    def add(self, path) -> str:
        reader = self.opened(path)
        uid = reader.GetMetaData("0008|0018").strip()
        self.files[uid] = str(path)
        return uid

    def opened(self, path):
        reader = sitk.ImageFileReader()
        reader.LoadPrivateTagsOn()
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        return reader

    def value(self, instanceUid, tag):
        self.reads += 1
        reader = self.opened(self.files[instanceUid])
        tag = tag.replace(",", "|")
        return reader.GetMetaData(tag).strip() if reader.HasMetaDataKey(tag) else ""


class Database:
    """What `ctkDICOMDatabase` answers, on a `FileTags`."""

    isOpen = True

    def __init__(self, tags) -> None:
        self.tags = tags

    def instanceValue(self, uid, tag):
        return self.tags.value(uid, tag)


@pytest.fixture(scope="module")
def small(ms_images):
    """The sample's images at 6 mm: their headers count here."""
    grid = grid_with_spacing(ms_images["t1"].grid, (6, 6, 6))
    return {key: resample(image, grid) for key, image in ms_images.items()}


@pytest.fixture(scope="module")
def ms(shipped_model):
    return shipped_model.description


@pytest.fixture
def tags():
    return FileTags()


@pytest.fixture
def dicomNode(core, small, tags, tmp_path):
    """Writes a slice of an image as DICOM with these tags, and gives its node in the scene."""
    count = iter(range(1000))

    def make(image: Image, name: str, **values):
        n = next(count)
        slice_ = to_sitk(image.with_array(image.array.astype(np.int16)))[:, :, 10:11]
        stamp = datetime.datetime.now().strftime("%H%M%S%f")
        for tag, value in {
            "0008|0060": "MR",
            "0020|000e": f"1.2.826.0.1.3680043.2.1125.{stamp}{n}",
            "0020|000d": "1.2.826.0.1.3680043.2.1125.77",
            **values,
        }.items():
            slice_.SetMetaData(tag, value)
        path = tmp_path / f"{n}.dcm"
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(path))
        slice_.SetMetaData("0008|0018", f"1.2.826.0.1.3680043.2.1125.9.{stamp}{n}")
        writer.Execute(slice_)
        node = volumeNodeFromImage(image, name, core.scene)
        node.SetAttribute(INSTANCE_UIDS, tags.add(path))
        return node

    return make


def test_dicom_headers_decide_whatever_the_names_are(core, small, tags, dicomNode, ms):
    t1 = dicomNode(small["t1"], "3: x", **{"0008|103e": "t1_mprage_sag_p2_iso"})
    post = dicomNode(small["t1"], "T1", **{"0008|103e": "t1_mprage_sag", "0018|0010": "Gadovist"})
    flair = dicomNode(small["flair"], "T2", **{"0008|103e": "t2_tirm_tra_dark-fluid"})
    t2 = dicomNode(small["t2"], "FLAIR", **{"0008|103e": "t2_tse_tra"})
    found = InputMatcher(core.scene, tags).match(ms)
    assert {key: p.node for key, p in found.items()} == {"t1": t1, "t2": t2, "flair": flair}
    assert "series description says 't1'" in found["t1"].why
    assert all(p.score > 0.8 and not p.ambiguous for p in found.values())
    assert all(c.node is not post for c in found["t1"].alternatives)


def test_times_of_the_header_find_a_sequence_without_a_telling_name(core, small, dicomNode, tags,
                                                                    ms):  # fmt: skip
    node = dicomNode(
        small["flair"], "series 7",
        **{"0008|103e": "brain axial", "0018|0081": "119", "0018|0080": "9000"},
        **{"0018|0082": "2500"},
    )  # fmt: skip
    found = InputMatcher(core.scene, tags).match(ms)
    assert found["flair"].node is node
    assert "TE 119 ms, TR 9000 ms, TI 2500 ms" in found["flair"].why
    assert found["flair"].score < 0.5
    assert found["t1"].node is None
    assert "None of the 1 volumes" in found["t1"].why


def test_image_type_and_b_value_are_read(core, small, dicomNode, tags):
    node = dicomNode(
        small["t2"], "x", **{"0008|0008": "DERIVED\\PRIMARY\\DIFFUSION\\ADC", "0018|9087": "800"}
    )
    facts = InputMatcher(core.scene, tags).facts(node)
    assert facts.image_type == ("DERIVED", "PRIMARY", "DIFFUSION", "ADC")
    assert facts.b_value == 800
    assert facts.study.endswith(".77")

    class GE:
        def value(self, uid, tag):
            return "1000001400\\8\\0\\0" if tag == "0043,1039" else ""

    assert InputMatcher(core.scene, GE()).facts(node).b_value == 1400


def test_the_applications_database_is_used_when_it_is_open(
    core, small, dicomNode, tags, ms, monkeypatch
):
    node = dicomNode(small["flair"], "x", **{"0008|103e": "3D FLAIR"})
    assert InputMatcher(core.scene).match(ms)["flair"].node is None
    monkeypatch.setattr(slicer, "dicomDatabase", Database(tags), raising=False)
    assert isinstance(applicationTags(), DatabaseTags)
    assert InputMatcher(core.scene).match(ms)["flair"].node is node
    monkeypatch.setattr(Database, "isOpen", False)
    assert applicationTags() is None


def test_a_database_that_fails_is_as_good_as_none(core, small, tags, dicomNode, ms):
    dicomNode(small["flair"], "FLAIR")
    tags.files.clear()
    assert InputMatcher(core.scene, DatabaseTags(Database(tags))).match(ms)["flair"].score > 0.7


def test_headers_are_read_once(core, small, tags, dicomNode, ms):
    dicomNode(small["flair"], "x", **{"0008|103e": "3D FLAIR"})
    matcher = InputMatcher(core.scene, tags)
    matcher.match(ms)
    reads = tags.reads
    matcher.match(ms)
    assert tags.reads == reads > 0


def test_names_alone_find_the_sample_case_and_say_so(core, small, ms):
    nodes = {key: volumeNodeFromImage(i, f"MS {key.upper()}", core.scene)
             for key, i in small.items()}  # fmt: skip
    found = InputMatcher(core.scene).match(ms)
    assert {key: p.node for key, p in found.items()} == nodes
    assert found["flair"].why == "The volume's name says 'flair'."
    assert 0.5 < found["flair"].score < 0.9


def test_a_near_second_is_named(core, small, ms):
    for name in ("FLAIR", "FLAIR repeated"):
        volumeNodeFromImage(small["flair"], name, core.scene)
    found = InputMatcher(core.scene).match(ms)["flair"]
    assert found.ambiguous
    assert "'FLAIR repeated' fits nearly as well" in found.why
    assert [c.node.GetName() for c in found.alternatives] == ["FLAIR repeated"]


def test_a_model_that_takes_one_image_gets_one(core, ct_or_mr_model, abdomen):
    node = volumeNodeFromImage(abdomen["mr"], "Abdomen MR", core.scene)
    found = InputMatcher(core.scene).match(ct_or_mr_model.description)
    assert (found["mr"].node, found["ct"].node) == (node, None)
    assert found["ct"].why == "Not needed: the model takes one image."


def test_results_label_maps_and_hidden_volumes_are_no_candidates(core, small, flair, ms):
    volumeNodeFromImage(small["t1"], "T1 attention", core.scene).SetAttribute(ROLE, "attention")
    hidden = volumeNodeFromImage(small["t1"], "T1", core.scene)
    hidden.SetHideFromEditors(1)
    volumeNodeFromImage(small["t1"], "T1 labels", core.scene, "vtkMRMLLabelMapVolumeNode")
    core.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "T2")
    matcher = InputMatcher(core.scene)
    assert matcher.candidates() == [flair]
    found = matcher.match(ms)
    assert (found["flair"].node, found["t1"].node, found["t2"].node) == (flair, None, None)


def test_an_empty_scene_says_what_to_do(core, ms):
    found = InputMatcher(core.scene).match(ms)
    assert all(p.node is None and p.score == 0 for p in found.values())
    assert "load one" in found["t1"].why


def test_what_fits_and_is_not_taken_is_told_with_its_reason(core, small, ms, tags, dicomNode):
    before = dicomNode(small["t1"], "T1 A", **{"0020|000d": "1.2.3"})
    for key in ("t1", "t2", "flair"):
        dicomNode(small[key], f"{key.upper()} B", **{"0020|000d": "1.2.4"})
    matcher = InputMatcher(core.scene, tags)
    # The user loaded A first, which stays.
    found = matcher.match(ms, {"t1": before})
    assert [found[key].node for key in ("t2", "flair")] == [None, None]
    assert found["t2"].why == (
        "'T2 B' fits, but belongs to another study than 'T1 A': please choose."
    )
    flair = core.scene.GetFirstNodeByName("FLAIR B")
    found = matcher.match(ms, {"t1": flair})
    assert found["flair"].why == f"'FLAIR B' fits, but is taken for {ms.input('t1').title}: " + (
        "please choose."
    )
    core.scene.Clear()
    volumeNodeFromImage(small["flair"], "FLAIR", core.scene)
    there = small["t2"].affine.copy()
    there[0, 3] += 500
    volumeNodeFromImage(Image(small["t2"].array, there), "T2", core.scene)
    found = InputMatcher(core.scene).match(ms)
    assert found["t2"].why == "'T2' fits, but does not lie where 'FLAIR' lies: please choose."
    assert found["t1"].why == "None of the 2 volumes looks like it: please choose."


def test_the_users_own_choice_is_judged_too(core, small, ms):
    node = volumeNodeFromImage(small["t1"], "t1 post gad", core.scene)
    judged = InputMatcher(core.scene).explain(ms, "t1", node)
    assert judged.score == 0
    assert "t1ce" in judged.why


def test_thick_slices_have_a_plane(core, shared_data):
    from medsegcore.imaging import read_image

    case = shared_data / "prostate" / "prostatex" / "ProstateX-0000"
    if not (case / "adc.nii.gz").is_file():
        pytest.skip("the prostate data are not here")
    adc = volumeNodeFromImage(read_image(case / "t2w.nii.gz"), "T2", core.scene)
    assert InputMatcher(core.scene).facts(adc).plane == "axial"
