"""The report of an evaluation: what it says, what it shows, and that it needs nothing else."""

import base64
import csv
import io
from html.parser import HTMLParser

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image as Picture
from scipy import ndimage

import medsegcore
from medsegcore.cli import main
from medsegcore.evaluation.answers import Answer
from medsegcore.evaluation.evaluate import evaluate_case
from medsegcore.evaluation.pictures import draw, error_view
from medsegcore.evaluation.plots import _bland_altman, _froc, plots
from medsegcore.imaging import Image, read_image, reorient, write_image

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Tags in balance, text, attributes, and the cells of the tables of cases."""

    def __init__(self, text):
        super().__init__()
        self.open, self.said, self.attributes = [], [], []
        self.cases: dict[str, dict[str, list[str]]] = {}
        self.rows: dict[str, list[str]] = {}
        self.row: list[str] | None = None
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.attributes.append((tag, given))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.rows = {}
            if "data-model" in given:
                self.cases[given["data-model"]] = self.rows
        if tag == "data":
            self.row.append(given["value"])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.said.append(data)
        if self.open[-3:] == ["tbody", "tr", "th"]:
            self.row = self.rows.setdefault(data, [])

    @property
    def text(self):
        return " ".join(" ".join(self.said).split())


@pytest.fixture(scope="module")
def reported(ms_cases, tmp_path_factory):
    """A report of the shipped model and of a FLAIR threshold, and its figures."""
    root = tmp_path_factory.mktemp("report")
    data = root / "data <&> set"
    # Names that would break a page that does not escape, and a header that names a patient.
    for case, name in (("a_1", 'a_<b>"1"'), ("b", "b")):
        (data / "open_ms" / name).mkdir(parents=True)
        for file in (ms_cases / case).glob("*.nii.gz"):
            image = sitk.ReadImage(str(file))
            image.SetMetaData("descrip", "DOE^JANE 1970")
            sitk.WriteImage(image, str(data / "open_ms" / name / file.name))
    folder = root / "bright"
    folder.mkdir()
    for name in ('a_<b>"1"', "b"):
        flair = read_image(data / "open_ms" / name / "flair.nii.gz")
        smooth = ndimage.gaussian_filter(flair.array.astype(np.float32), 0.7)
        bright = smooth > np.percentile(smooth[flair.array > 0], 92)
        write_image(flair.with_array(bright), folder / f"{name}.nii.gz")
    code = main(["evaluate", "--model", "ms-lesion-rsanet", "--predictions", str(folder),
                 "--data", str(data), "--device", "cpu", "--out", str(root / "x.csv"),
                 "--report", str(root / "x.html"), "--json"])  # fmt: skip
    assert code == 0
    return root


@pytest.fixture(scope="module")
def page(reported):
    return Page((reported / "x.html").read_text(encoding="utf-8"))


def test_the_figures_of_the_report_are_those_of_the_table(reported, page):
    lines = list(csv.reader((reported / "x.csv").open()))[1:]
    assert len(lines) == 4
    told = [[model, case, *values] for model, cases in page.cases.items()
            for case, values in cases.items()]  # fmt: skip
    assert told == lines
    assert [line[0] for line in lines] == ["ms-lesion-rsanet"] * 2 + ["bright"] * 2
    mean = np.mean([float(line[2]) for line in lines[:2]])
    assert f"Dice {mean:.3g} ±" in page.text


def test_the_report_needs_nothing_from_elsewhere(reported, page):
    text = (reported / "x.html").read_text(encoding="utf-8")
    assert "http" not in text
    assert "url(" not in text
    assert not any(tag in ("script", "link", "iframe") for tag, _ in page.attributes)
    sources = [given["src"] for tag, given in page.attributes if tag == "img"]
    # Four plots, and two cases of two methods.
    assert len(sources) == 8
    for source in sources:
        kind, content = source.split(";base64,")
        content = base64.b64decode(content)
        if kind == "data:image/jpeg":
            assert Picture.open(io.BytesIO(content)).size == (1248, 455)
        else:
            assert kind == "data:image/svg+xml"
            assert b"<svg" in content
            assert b"<image" not in content
    assert all(given["alt"] for tag, given in page.attributes if tag == "img")
    assert len(text) < 2_000_000


def test_the_report_says_what_made_it_and_nothing_of_the_patient(reported, page, shipped_model):
    text = page.text
    assert "DOE" not in text
    assert "JANE" not in text
    assert "medseg evaluate --model ms-lesion-rsanet --predictions" in text
    assert shipped_model.description.weights.sha256 in text
    assert f"medsegcore {medsegcore.__version__}" in text
    assert "cases of data <&> set" in text
    for heading in ("Summary", "Paired tests", "Cases", "Lesions by size", "Worst cases"):
        assert heading in text


def evaluated(case, answer, reference, grid, probability=None):
    probabilities = {} if probability is None else {"x": probability}
    return evaluate_case(case, Answer({"x": answer}, probabilities), {"x": reference}, grid)


def test_the_plots_show_the_figures(ms_reference, rater_probability):
    box = (slice(20, 70), slice(40, 120), slice(30, 100))
    grid, reference = ms_reference.grid.crop(box), ms_reference.array[box]
    rater_probability = rater_probability[box]
    rows = {
        "model": [
            evaluated(str(t), rater_probability > t, reference, grid, rater_probability)
            for t in (0.3, 0.6)
        ],
        "files": [evaluated(str(t), rater_probability > t, reference, grid) for t in (0.2, 0.7)],
    }
    first, second = _bland_altman(rows, "").axes
    points = np.asarray(first.collections[0].get_offsets())
    volumes = np.array([[(rater_probability > t).sum(), reference.sum()] for t in (0.3, 0.6)])
    volumes = volumes * grid.voxel_volume_ml
    assert points[:, 0] == pytest.approx(volumes.mean(axis=1))
    assert points[:, 1] == pytest.approx(volumes[:, 0] - volumes[:, 1])
    assert second.get_title() == "files"
    # A curve needs probabilities; where a method works is marked for both.
    (axes,) = _froc(rows, "").axes
    markers = [line for line in axes.lines if line.get_marker() != "None"]
    assert (len(markers), len(axes.lines)) == (2, 3)
    lesions = [x for row in rows["model"] for x in row.lesions if not x.false]
    assert markers[0].get_ydata()[0] == np.mean([x.found for x in lesions])
    assert plots(rows) == plots(rows)
    assert len(plots(rows)) == 4


def test_without_any_lesion_the_plots_that_need_one_are_left_out(ms_reference):
    answer = ms_reference.array[60:80]
    rows = {"model": [evaluated("x", answer, answer & False, ms_reference.grid)]}
    assert set(plots(rows)) == {"Measures by case", "Volumes against the reference (Bland-Altman)"}


def test_a_picture_goes_through_the_missed_lesion(ms_images, ms_reference):
    components, _ = ndimage.label(ms_reference.array, np.ones((3, 3, 3)))
    second = np.bincount(components.ravel())[1:].argsort()[-2] + 1
    missed = components == second
    view = error_view(
        ms_images["flair"], {"x": ms_reference.array & ~missed}, {"x": ms_reference.array}
    )
    i, j, k = np.rint(ms_reference.grid.to_ijk(np.array(view.center_ras))).astype(int)
    assert missed[k, j, i]
    assert view.wrong_ml == pytest.approx(missed.sum() * ms_reference.grid.voxel_volume_ml)
    for plane in view.planes:
        assert ((plane.reference > 0) & (plane.answer == 0)).any()
        assert not ((plane.answer > 0) & (plane.reference == 0)).any()
    assert Picture.open(io.BytesIO(draw(view))).format == "JPEG"
    nothing = error_view(ms_images["flair"], {"x": ms_reference.array}, {"x": ms_reference.array})
    assert nothing.wrong_ml == 0


@pytest.mark.parametrize("orientation", ["LPI", "AIR", "SRP"])
def test_a_picture_is_the_same_however_the_axes_run(ms_images, ms_reference, orientation):
    flair, mask = ms_images["flair"], ms_reference
    right_half = np.zeros_like(mask.array)
    middle = flair.grid.to_ijk(flair.grid.center)[0]
    right = slice(int(middle), None) if flair.grid.affine[0, 0] > 0 else slice(None, int(middle))
    right_half[..., right] = mask.array[..., right]
    first = error_view(flair, {"x": mask.array}, {"x": right_half})
    turned = [
        reorient(Image(a, flair.affine), orientation) for a in (flair.array, mask.array, right_half)
    ]
    second = error_view(turned[0], {"x": turned[1].array}, {"x": turned[2].array})
    assert second.center_ras == pytest.approx(first.center_ras)
    # What is answered at the patient's left is wrong, so that the place lies there.
    assert first.center_ras[0] < flair.grid.center[0]
    for a, b in zip(first.planes, second.planes, strict=True):
        np.testing.assert_array_equal(a.gray, b.gray)
        np.testing.assert_array_equal(a.answer, b.answer)
        np.testing.assert_array_equal(a.reference, b.reference)


def test_the_patients_right_is_at_the_left_of_a_picture():
    # One bright voxel of 5 mm at the right, front and top of the only error.
    grid = Image(np.zeros((9, 9, 9)), np.diag([5.0, 5, 5, 1]))
    array = np.zeros((9, 9, 9), np.float32)
    array[6, 6, 6] = 100
    wrong = np.zeros((9, 9, 9), bool)
    wrong[4, 4, 4] = True
    array[4, 6, 6] = array[6, 4, 6] = array[6, 6, 4] = 100
    view = error_view(grid.with_array(array), {"x": wrong}, {"x": ~wrong & False})
    places = {p.title: tuple(int(n[0]) for n in p.gray.nonzero()) for p in view.planes}
    # (row from below, column): front above in axial, top above in the others, front at the left.
    assert places == {"axial": (6, 2), "coronal": (6, 2), "sagittal": (6, 2)}
    assert [p.sides for p in view.planes] == ["RLPA", "RLIS", "APIS"]
