"""The models to choose from, with a card that tells what matters and runs nothing foreign."""

import html.parser
import json
import shutil

import pytest

from medsegcore.errors import ModelArchiveError, ModelError, ModelNotFoundError, OutputError
from medsegcore.models import ModelStore, pack
from SlicerMedSegLib.ModelCatalog import ModelCatalog, modelCard, modelCardHtml

SHIPPED = "ms-lesion-rsanet"
pytestmark = pytest.mark.usefixtures("zoo_of_one")


@pytest.fixture
def catalog(tmp_path):
    return ModelCatalog(ModelStore(tmp_path / "mine"))


@pytest.fixture
def variant(shipped_model, tmp_path):
    """Writes a copy of the shipped model with other words in its model.json, and gives its path."""

    def make(modelId, **changes):
        path = tmp_path / "made" / modelId
        shutil.copytree(shipped_model.path, path)
        content = json.loads((path / "model.json").read_text(encoding="utf-8"))
        content |= {"id": modelId, **changes}
        (path / "model.json").write_text(json.dumps(content))
        return path

    return make


def ids(entries):
    return [e.description.id if e.description else e.path.name for e in entries]


def test_search_and_filters_find_models_by_what_they_are(catalog, variant):
    catalog.add(variant("gland-net", title="Prostate gland", task="Segments the gland.",
                        anatomy="prostate", memory_mb=9000))  # fmt: skip
    assert ids(catalog.entries()) == [SHIPPED, "gland-net"]
    assert ids(catalog.entries("PROSTATE gland")) == ["gland-net"]
    assert ids(catalog.entries("flair lesion")) == [SHIPPED, "gland-net"]
    assert ids(catalog.entries(anatomy="brain")) == [SHIPPED]
    assert ids(catalog.entries(memoryMb=4000)) == [SHIPPED]
    assert ids(catalog.entries(modalities=["CT"])) == []
    assert catalog.anatomies() == ["brain", "prostate"]


def test_models_are_found_by_the_images_at_hand(catalog, variant, shipped_model):
    def spec(key, title, **values):
        same = shipped_model.description.inputs[0].model_dump(mode="json")
        return {**same, "key": key, "title": title, "match": {}, **values}

    gland = [spec("t2w", "T2-weighted MR"), spec("adc", "ADC map")]
    catalog.add(variant("gland-net", inputs=gland, reference="t2w"))
    organs = [spec("organs", "CT", modality="CT"), spec("other", "MR", modality="MR")]
    organs[1]["required"] = False
    catalog.add(variant("organ-net", inputs=organs, reference="organs"))
    assert catalog.modalities() == ["ADC", "CT", "FLAIR", "MR", "T1", "T2"]

    def fits(*images):
        return [e.description.id for e in catalog.entries(modalities=images) if e.description.id]

    # The T2 of the shipped model is optional.
    assert fits("T1", "FLAIR") == [SHIPPED]
    assert fits("T1") == fits("T2") == []
    assert fits("T2", "ADC") == ["gland-net"]
    assert fits("CT") == ["organ-net"]
    assert len(fits(*catalog.modalities())) == len(fits()) == 3


def test_broken_models_are_listed_last_with_their_reason_whatever_the_filter(catalog, variant):
    damaged = catalog.add(variant("damaged")).path
    (damaged / "model.json").write_text("{")
    cut = catalog.add(variant("cut", title="A cut one"))
    weights = cut.path / cut.description.weights.file
    weights.write_bytes(weights.read_bytes()[:5000])
    catalog.refresh()
    assert ids(catalog.entries()) == [SHIPPED, "cut", "damaged"]
    assert [e.usable for e in catalog.entries()] == [True, False, False]
    assert "no valid model description" in catalog.entry(damaged).problem
    assert "truncated" in catalog.entry("cut").problem
    assert ids(catalog.entries("nothing like it")) == ["damaged"]
    assert modelCard(catalog.entry(damaged))[0].lines == [catalog.entry(damaged).problem]
    assert "truncated" in modelCardHtml(catalog.entry("cut"))


def test_the_card_tells_what_a_user_has_to_know(catalog, shipped_model):
    entry = catalog.entry(SHIPPED)
    d = shipped_model.description
    sections = {s.title: s for s in modelCard(entry)}
    assert d.task in sections["Segments"].lines
    assert "The skull has to be removed." in sections["Inputs"].lines[0]
    assert [row[0] for row in sections["Inputs"].table[1:]] == [s.title for s in d.inputs]
    assert "reference grid" in sections["Inputs"].table[3][2]
    assert set(d.limits) <= set(sections["Intended use and limits"].lines)
    held_out = sections["Measured: never trained on"]
    assert held_out.table[0] == [
        "case",
        "Dice",
        "sensitivity",
        "precision",
        "lesion F1",
        "HD95 [mm]",
    ]
    dice = next(m for m in d.metrics if m.name == "Dice" and m.how == "never trained on")
    assert held_out.table[1][:2] == [dice.case, f"{dice.value:.3g}"]
    assert [len(s.table) for title, s in sections.items() if "Measured" in title] == [2, 6, 6]
    assert "Commercial use: allowed." in sections["License"].lines[0]
    assert d.data[0].name in sections["Training data"].table[1]


def test_the_cards_figures_stand_by_case_label_and_how_they_were_obtained(catalog, variant):
    def figure(name, value, case, n=1, how="by hand"):
        return {"name": name, "value": value, "unit": "", "case": case, "n": n, "how": how}

    metrics = [
        figure("Gland: Dice", 0.5, "a"),
        figure("Zone: Dice", None, "a"),
        figure("Gland: Dice", 0.25, "all", 3),
        figure("Gland: skill", 0.1, "a"),
        figure("Gland: Dice", 0.9, "b", how="by eye"),
    ]
    card = {s.title: s for s in modelCard(catalog.add(variant("figures", metrics=metrics)))}
    assert card["Measured: by hand"].table == [
        ["case", "label", "Dice"],
        ["a", "Gland", "0.5"],
        ["a", "Zone", "\N{EN DASH}"],
        ["all (n = 3)", "Gland", "0.25"],
    ]
    assert card["Measured: by hand"].lines == ["Further measures in model.json: 1."]
    assert card["Measured: by eye"].table[1:] == [["b", "Gland", "0.9"]]
    own = catalog.add(variant("own", metrics=[figure("skill", 0.1, "a"), figure("luck", 0.2, "a")]))
    card = {s.title: s for s in modelCard(own)}
    assert card["Measured: by hand"].table == [["case", "skill", "luck"], ["a", "0.1", "0.2"]]


class Tags(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.text = set(), set(), ""

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.text += data


def test_a_models_words_cannot_become_html_or_load_anything(catalog, variant):
    evil = '<img src="http://example.org/x.png"><a href="file:///etc/passwd">x</a>'
    entry = catalog.add(variant("evil", title=evil, task=evil, limits=[evil], citation=[evil]))
    parser = Tags()
    parser.feed(modelCardHtml(entry))
    assert parser.tags <= {"h3", "h4", "p", "table", "tr", "td", "th"}
    assert parser.attributes <= {"align", "cellspacing", "cellpadding"}
    assert parser.text.count(evil) == 4


def test_a_zip_is_added_once_and_an_unsafe_one_never(catalog, variant, tmp_path):
    from zipfile import ZipFile

    from medsegcore.models import ModelFolder

    path = pack(ModelFolder.read(variant("packed")), tmp_path / "packed.zip")
    assert catalog.add(path).path == tmp_path / "mine" / "packed"
    with pytest.raises(OutputError, match="already, in"):
        catalog.add(path)
    with ZipFile(path, "a") as archive:
        archive.writestr("packed/../../escaped.txt", "x")
    with pytest.raises(ModelArchiveError, match="outside of its folder"):
        catalog.add(path)
    assert not (tmp_path / "escaped.txt").exists()


def test_the_users_models_can_be_deleted_and_the_shipped_ones_cannot(catalog, variant, tmp_path):
    entry = catalog.add(variant("mine-1"))
    (entry.path / "model.json").write_text("{")
    catalog.refresh()
    catalog.delete(catalog.entry(entry.path))
    assert ids(catalog.entries()) == [SHIPPED]
    assert list((tmp_path / "mine").iterdir()) == []
    with pytest.raises(ModelError, match="none of your own"):
        catalog.delete(catalog.entry(SHIPPED))
    assert catalog.entry(SHIPPED).usable
    with pytest.raises(ModelNotFoundError):
        catalog.delete(entry)


def test_a_link_is_deleted_but_not_what_it_leads_to(catalog, variant, tmp_path):
    original = variant("linked")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "linked").symlink_to(original)
    catalog.refresh()
    catalog.delete(catalog.entry("linked"))
    assert (original / "model.json").is_file()
    assert ids(catalog.entries()) == [SHIPPED]


def test_the_users_own_stands_in_for_a_shipped_one_of_the_same_id(catalog, variant):
    catalog.add(variant(SHIPPED, title="Mine"))
    assert [e.title for e in catalog.entries()] == ["Mine"]
    catalog.delete(catalog.entry(SHIPPED))
    assert catalog.entry(SHIPPED).shipped


def test_a_model_whose_folder_went_away_is_told(catalog, variant):
    entry = catalog.add(variant("gone"))
    shutil.rmtree(entry.path)
    catalog.refresh()
    with pytest.raises(ModelNotFoundError, match="no model 'gone' any more"):
        catalog.entry("gone")
