"""MSLesSeg: MS lesions of 75 patients at one to four visits, in MNI space, skull-stripped."""

from medsegcore.training.datasets.adapters.layout import Adapter, by_label
from medsegcore.training.datasets.dataset import Channel
from medsegcore.training.datasets.sources import SOURCES

FILE = "{case}_{name}.nii.gz"

MSLESSEG = Adapter(
    name="mslesseg",
    source=SOURCES["mslesseg"],
    layout="train/P9/T3/P9_T3_FLAIR.nii.gz (T1, T2, MASK beside it) and test/P54/P54_FLAIR.nii.gz "
    "the same, as the publisher's archive has them; not tried on the whole download.",
    channels={"t1": Channel("T1"), "t2": Channel("T2", required=False), "flair": Channel("FLAIR")},
    labels={"MS lesion": 1},
    find=by_label(
        r"(?P<case>(?P<patient>P\d+)(?:_T\d+)?)_MASK\.nii\.gz",
        {key: FILE.replace("{name}", key.upper()) for key in ("t1", "t2", "flair")},
        1,
        "{case}",
        "{patient}",
        "mslesseg",
    ),
)
