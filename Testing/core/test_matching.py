"""Names of real sequences are told apart, and volumes go to the inputs that they belong to."""

import itertools

import numpy as np
import pytest

from medsegcore.imaging import Grid
from medsegcore.models import InputMatch, InputSpec, Normalisation
from medsegcore.models.contrasts import NO_IMAGES, contrast_of, contrast_of_timing
from medsegcore.models.matching import Match, VolumeFacts, match_inputs, score_input

# Series descriptions and file names as scanners, archives and public data sets have them.
NAMES = [
    # ProstateX, PI-CAI
    ("t2_tse_tra", "t2"),
    ("t2_tse_sag", "t2"),
    ("t2_tse_tra_snel_bij bewegings artefacten", "t2"),
    ("ep2d_diff_tra_DYNDIST_ADC", "adc"),
    ("ep2d_diff_tra_DYNDIST_MIX_ADC", "adc"),
    ("ep2d_diff_tra2x2_Noise0_FS_DYNDIST_ADC", "adc"),
    ("ep2d_diff_tra_DYNDISTCALC_BVAL", "dwi"),
    ("ep2d_diff_tra_DYNDIST", "dwi"),
    ("ep2d-advdiff-3Scan-4bval_spair_511b50_ADC", "adc"),
    ("tfl_3d PD ref_tra_1.5x1.5_t3", "pd"),
    ("Perfusie_t1_twist_tra_1.5x1.5x3", "perfusion"),
    ("localisatie", "localizer"),
    ("10000_1000000_t2w", "t2"),
    ("10000_1000000_adc", "adc"),
    ("10000_1000000_hbv", "dwi"),
    ("10000_1000000_sag", ""),
    # prostate: GE, Philips, Siemens
    ("Ax T2 FRFSE HR", "t2"),
    ("AX FOCUS DWI b1400", "dwi"),
    ("ADC (10^-6 mm²/s)", "adc"),
    ("Apparent Diffusion Coefficient (mm2/s)", "adc"),
    ("ADC map b=0,800", "adc"),
    ("dADC", "adc"),
    ("dADC map", "adc"),
    ("eADC", "map"),
    ("Exponential Apparent Diffusion Coefficient", "map"),
    ("T2W_TSE_ax", "t2"),
    ("dDWI 0 1500", "dwi"),
    ("resolve_b50_800_tra_TRACEW", "dwi"),
    ("ep2d_b1400_tra_p2", "dwi"),
    ("calc_b2000", "dwi"),
    # BraTS
    ("BraTS-GLI-00000-000-t1n", "t1"),
    ("BraTS-GLI-00000-000-t1c", "t1ce"),
    ("BraTS-GLI-00000-000-t2w", "t2"),
    ("BraTS-GLI-00000-000-t2f", "flair"),
    ("BraTS-GLI-00000-000-seg", "mask"),
    ("BraTS20_Training_001_flair", "flair"),
    ("BraTS20_Training_001_t1ce", "t1ce"),
    ("BraTS20_Training_001_t1", "t1"),
    # ADNI
    ("MPRAGE", "t1"),
    ("MP-RAGE REPEAT", "t1"),
    ("Accelerated Sagittal IR-FSPGR", "t1"),
    ("MPR; GradWarp; B1 Correction; N3; Scaled", "t1"),
    ("Sagittal 3D FLAIR", "flair"),
    ("Axial PD/T2 FSE", "pd"),
    ("Axial T2-Star", "t2star"),
    ("Field Mapping", "localizer"),
    ("Axial rsfMRI (Eyes Open)", "functional"),
    ("Perfusion_Weighted", "perfusion"),
    # brain: Siemens
    ("t1_mprage_sag_p2_iso", "t1"),
    ("t1_mpr_ns_sag_p2_iso", "t1"),
    ("t1_mprage_sag_p2_iso_KM", "t1ce"),
    ("t2_tirm_tra_dark-fluid", "flair"),
    ("t2_spc_da-fl_irprep_sag_p2_iso dark fluid", "flair"),
    ("t2_space_flair_sag", "flair"),
    ("t2_tse_tra_512", "t2"),
    ("t2_tirm_cor", "stir"),
    ("t2_fl2d_tra_hemo", "t2star"),
    ("ep2d_diff_3scan_trace_p2_ADC", "adc"),
    ("AAHead_Scout", "localizer"),
    # brain: GE
    ("Ax T2 FLAIR", "flair"),
    ("Sag CUBE T2 FLAIR", "flair"),
    ("Sag T1 FLAIR", "t1"),
    ("Ax T2 PROPELLER", "t2"),
    ("Sag 3D BRAVO", "t1"),
    ("Ax T1 FSPGR +C", "t1ce"),
    ("3-pl T2* FGRE Loc", "localizer"),
    ("Ax SWAN", "t2star"),
    # brain: Philips
    ("sT1W_3D_TFE", "t1"),
    ("sT1W_3D_TFE GADO", "t1ce"),
    ("3D_Brain_VIEW_FLAIR_SHC", "flair"),
    ("T2W_TSE", "t2"),
    ("T1W/SE", "t1"),
    ("DIR_3D", "dir"),
    # traps
    ("T2 FLAIR", "flair"),
    ("FLAIR T2", "flair"),
    ("t1 post gad", "t1ce"),
    ("AX T1 PRE GAD", "t1"),
    ("T1 w/o contrast", "t1"),
    ("T1 without gd", "t1"),
    ("T1 non-contrast", "t1"),
    ("T1 +C", "t1ce"),
    ("T1 C+", "t1ce"),
    ("T1 w/c", "t1ce"),
    ("SUB T1 POST - T1 PRE", "derived"),
    ("T1 subtraction", "derived"),
    ("T2 MIP", "derived"),
    ("t2_lesion", "mask"),
    ("brainmask", "mask"),
    ("T1 Map", "map"),
    ("TOF_3D_multi-slab", "angiography"),
    ("DTI_64dir_FA", "tensor"),
    ("sub-01_ses-1_T1w", "t1"),
    ("sub-04_FLAIR", "flair"),
    ("4: T2 tse sag", "t2"),
    ("BVAL1400", "dwi"),
    ("MRBrainT1", "t1"),
    ("T1 DIXON in phase", "t1"),
    ("mIP_Images(SW)", "derived"),
    ("Pha_Images", "phase"),
    ("Volume", ""),
    ("untitled_3", ""),
]


@pytest.mark.parametrize(("name", "kind"), NAMES)
def test_a_real_name_says_its_contrast(name, kind):
    assert contrast_of(name).kind == kind


def test_the_time_point_of_a_case_is_not_its_contrast():
    found = contrast_of("P14_T2_t1")
    assert (found.kind, found.clear) == ("t1", False)
    assert contrast_of("P14_T2_flair").kind == "flair"
    assert contrast_of("P39_T1_t1").kind == "t1"


def test_b_values_are_read_from_names():
    assert contrast_of("resolve_b50_800_tra_TRACEW").b_values == (50, 800)
    assert contrast_of("ep2d_b1400_tra").b_values == (1400,)


def test_echo_and_repetition_times_tell_contrasts_and_stay_silent_in_doubt():
    assert contrast_of_timing(119, 9000, 2500) == "flair"
    assert contrast_of_timing(101, 5660, None) == "t2"
    assert contrast_of_timing(3, 2300, 900) == "t1"
    assert contrast_of_timing(9, 500, None) == "t1"
    assert contrast_of_timing(20, 3000, None) == ""
    assert contrast_of_timing(None, 3000, None) == ""


@pytest.fixture(scope="module")
def ms(shipped_model):
    return shipped_model.description


@pytest.fixture(scope="module")
def prostate(ms):
    """A model of T2W, ADC and DWI; it works on the axial slices as they were acquired."""
    how = Normalisation(method="robust")
    inputs = [
        InputSpec(key=key, title=title, modality="MR", required=key != "dwi", normalisation=how,
                  match=InputMatch(series_description=patterns, names=patterns))
        for key, title, patterns in (
            ("t2w", "T2-weighted MR", [r"\bt2"]),
            ("adc", "ADC map", ["adc"]),
            ("dwi", "High-b diffusion", ["dwi", "hbv", "bval"]),
        )
    ]  # fmt: skip
    grid = ms.grid.model_copy(
        update={"axes": "reference", "orientation": "LPS", "dimensionality": "2D"}
    )
    return ms.model_copy(update={"inputs": inputs, "reference": "t2w", "grid": grid})


def chosen(description, names, **facts) -> dict[str, str | None]:
    volumes = [VolumeFacts(name, **facts) for name in names]
    found = match_inputs(description, volumes)
    return {key: None if m.index is None else names[m.index] for key, m in found.items()}


@pytest.mark.parametrize(
    "names",
    [
        ("T1", "T2", "FLAIR"),
        ("P14_T2_t1", "P14_T2_t2", "P14_T2_flair"),
        ("BraTS-GLI-00000-000-t1n", "BraTS-GLI-00000-000-t2w", "BraTS-GLI-00000-000-t2f"),
        ("Sag 3D BRAVO", "Ax T2 PROPELLER", "Sag CUBE T2 FLAIR"),
        ("t1_mprage_sag_p2_iso", "t2_tse_tra_512", "t2_tirm_tra_dark-fluid"),
        ("sub-01_T1w", "sub-01_T2w", "sub-01_FLAIR"),
    ],
)
def test_the_three_brain_contrasts_are_found_in_any_order_among_traps(ms, names):
    traps = ("t1 post gad", "T1 SUB", "localizer", "lesion", "ADC", "Ax SWAN", "T1 Map")
    for order in itertools.permutations(names):
        found = chosen(ms, [*traps[:3], *order, *traps[3:]])
        assert found == dict(zip(("t1", "t2", "flair"), names, strict=True))


def test_nothing_is_proposed_where_nothing_fits(ms, prostate):
    names = ["t1 post gad", "ADC", "localizer", "Volume", "untitled_3"]
    assert chosen(ms, names) == {"t1": None, "t2": None, "flair": None}
    assert chosen(prostate, ["T1", "FLAIR"]) == {"t2w": None, "adc": None, "dwi": None}
    assert all(m == Match(None, m.score) and m.score.value == 0
               for m in match_inputs(ms, []).values())  # fmt: skip


def test_a_prostate_case_of_an_archive_is_taken_apart(prostate):
    names = [
        "localisatie", "t2_tse_cor", "t2_tse_sag", "t2_tse_tra", "ep2d_diff_tra_DYNDIST",
        "ep2d_diff_tra_DYNDIST_ADC", "ep2d_diff_tra_DYNDISTCALC_BVAL",
        "Perfusie_t1_twist_tra_1.5x1.5x3",
    ]  # fmt: skip
    found = match_inputs(prostate, [VolumeFacts(n, n, "MR") for n in names])
    assert names[found["t2w"].index] == "t2_tse_tra"
    assert [names[n] for n, _ in found["t2w"].alternatives] == ["t2_tse_cor", "t2_tse_sag"]
    assert not found["t2w"].ambiguous
    assert names[found["adc"].index] == "ep2d_diff_tra_DYNDIST_ADC"
    # Both diffusion series could hold the high b-value: that is said, not decided silently.
    assert found["dwi"].ambiguous
    assert names[found["dwi"].index].startswith("ep2d_diff")


def test_the_plane_of_the_voxels_counts_where_the_name_is_silent(prostate):
    volumes = [VolumeFacts("T2", plane="sagittal"), VolumeFacts("T2", plane="axial")]
    found = match_inputs(prostate, volumes)["t2w"]
    assert found.index == 1
    assert found.alternatives[0][1].notes == ("plane",)


def test_no_volume_is_used_twice_and_the_required_input_comes_first(ms):
    spec = ms.input("t1")
    optional = spec.model_copy(update={"key": "t1w", "required": False})
    twins = ms.model_copy(update={"inputs": [optional, spec], "reference": "t1"})
    found = match_inputs(twins, [VolumeFacts("T1")])
    assert found["t1"].index == 0
    assert found["t1w"].index is None


def test_two_that_fit_equally_are_ambiguous(ms):
    found = match_inputs(ms, [VolumeFacts("T1"), VolumeFacts("T1"), VolumeFacts("FLAIR")])
    assert found["t1"].ambiguous
    assert len(found["t1"].alternatives) == 1
    assert not found["flair"].ambiguous


def test_volumes_of_two_studies_are_never_mixed(ms):
    one = [VolumeFacts("a", d, "MR", study="1") for d in ("t1_mprage", "t2_tse")]
    two = [VolumeFacts("b", d, "MR", study="2") for d in ("t1_mprage", "t2_tse", "t2_flair")]
    found = match_inputs(ms, [*one, *two])
    assert [found[key].index for key in ("t1", "t2", "flair")] == [2, 3, 4]
    twice = match_inputs(ms, [*two, *[VolumeFacts("c", v.description, "MR", study="3")
                                      for v in two]])  # fmt: skip
    assert [twice[key].index for key in ("t1", "t2", "flair")] == [0, 1, 2]
    assert all(match.ambiguous for match in twice.values())


def test_what_is_taken_stays_and_the_rest_goes_with_it(ms):
    names = ("T1", "T2 old", "T2", "FLAIR")
    volumes = [VolumeFacts(name) for name in names]
    found = match_inputs(ms, volumes, {"t2": 1})
    assert [found[key].index for key in ("t1", "t2", "flair")] == [0, 1, 3]
    assert found["t2"].ambiguous
    # Also what does not look like it, and it is used for nothing else.
    found = match_inputs(ms, volumes, {"flair": 2})
    assert [found[key].index for key in ("t1", "t2", "flair")] == [0, 1, 2]
    # A volume of another study is not mixed in.
    one = [VolumeFacts("a", d, "MR", study="1") for d in ("t1_mprage", "t2_tse")]
    two = [VolumeFacts("b", d, "MR", study="2") for d in ("t1_mprage", "t2_tse", "t2_flair")]
    found = match_inputs(ms, [*one, *two], {"t1": 0})
    assert [found[key].index for key in ("t1", "t2", "flair")] == [0, 1, None]


def at(x: float) -> Grid:
    affine = np.eye(4)
    affine[0, 3] = x
    return Grid((100, 100, 100), affine)


def test_volumes_that_lie_elsewhere_than_the_reference_are_not_mixed_in(ms):
    volumes = [
        VolumeFacts("T1", grid=at(80)), VolumeFacts("T2", grid=at(500)),
        VolumeFacts("FLAIR", grid=at(0)), VolumeFacts("T1 again", grid=at(30)),
        VolumeFacts("t1 third", grid=at(0)),
    ]  # fmt: skip
    found = match_inputs(ms, volumes)
    assert found["flair"].index == 2
    assert found["t2"].index is None
    assert [n for n, _ in found["t2"].alternatives] == [1]
    # Of two that fit equally, the one on the reference's place; the other is named.
    assert found["t1"].index == 4
    assert found["t1"].ambiguous


def test_the_reference_that_has_its_companions_is_taken(ms):
    volumes = [
        VolumeFacts("FLAIR", grid=at(900)), VolumeFacts("T1", grid=at(0)),
        VolumeFacts("T2", grid=at(0)), VolumeFacts("FLAIR", grid=at(0)),
    ]  # fmt: skip
    found = match_inputs(ms, volumes)
    assert [found[key].index for key in ("t1", "t2", "flair")] == [1, 2, 3]
    assert found["flair"].ambiguous
    assert not found["t1"].ambiguous


def test_dicom_says_more_than_a_name(ms, prostate):
    renamed = VolumeFacts("FLAIR", "t2_tse_tra", "MR")
    assert score_input(ms.input("flair"), renamed).value == 0
    assert score_input(ms.input("t2"), renamed).value > 0.8
    assert score_input(ms.input("t1"), VolumeFacts("T1", modality="CT")).source == "modality"
    given = VolumeFacts("x", "t1_mprage", "MR", agent="Gadovist")
    assert score_input(ms.input("t1"), given).kind == "t1ce"
    adc = VolumeFacts("x", "diff", "MR", image_type=("DERIVED", "PRIMARY", "DIFFUSION", "ADC"))
    assert score_input(prostate.input("dwi"), adc).value == 0
    assert score_input(ms.input("t1"), VolumeFacts("x", "t1", image_type=("ORIGINAL", "LOCALIZER")
                                                   )).value == 0  # fmt: skip


def test_times_confirm_doubt_and_stand_alone_weakly(ms):
    plain = score_input(ms.input("flair"), VolumeFacts("x", "flair", "MR"))
    timed = {"echo_ms": 119.0, "repetition_ms": 9000.0, "inversion_ms": 2500.0}
    agreed = score_input(ms.input("flair"), VolumeFacts("x", "flair", "MR", **timed))
    odd = score_input(ms.input("t1"), VolumeFacts("x", "t1", "MR", **timed))
    alone = score_input(ms.input("flair"), VolumeFacts("x", "axial 3 mm", "MR", **timed))
    assert agreed.value > plain.value > alone.value > 0.3
    assert odd.value < 0.6
    assert odd.notes == ("timing",)
    assert alone.word == "TE 119 ms, TR 9000 ms, TI 2500 ms"


def test_high_b_values_are_preferred_for_diffusion(prostate):
    names = ["dwi b50", "dwi b1400", "dwi b400"]
    found = match_inputs(prostate, [VolumeFacts(n, n, "MR") for n in names])["dwi"]
    assert names[found.index] == "dwi b1400"
    by_tag = [VolumeFacts("dwi", "dwi", "MR", b_value=b) for b in (0.0, 1000.0, 50.0)]
    assert match_inputs(prostate, by_tag)["dwi"].index == 1


def test_a_models_own_exclusions_are_kept_unless_the_agent_is_denied(ms):
    assert "contrast" in ms.input("t1").match.exclude
    assert score_input(ms.input("t1"), VolumeFacts("T1 contrast")).value == 0
    assert score_input(ms.input("t1"), VolumeFacts("T1 without contrast")).value > 0.5
    assert score_input(ms.input("t2"), VolumeFacts("T2*")).value == 0


def test_images_of_unknown_contrasts_go_by_the_models_patterns_alone(ms):
    spec = InputSpec(key="late", title="Late phase", modality="CT", required=True,
                     normalisation=Normalisation(method="robust"),
                     match=InputMatch(names=["portal", "late"]))  # fmt: skip
    assert score_input(spec, VolumeFacts("Abdomen portal venous", modality="CT")).value > 0.7
    assert score_input(spec, VolumeFacts("Abdomen native", modality="CT")).value == 0
    assert "mask" in NO_IMAGES
    assert score_input(spec, VolumeFacts("portal mask")).value == 0
