"""MedSeg's sample cases, for Slicer's Sample Data module."""

from dataclasses import dataclass
from pathlib import Path

URL = "https://raw.githubusercontent.com/medseg/SlicerMedSeg/main/Testing/data"
LOCAL = Path(__file__).resolve().parents[2] / "Testing" / "data"
THUMBNAILS = Path(__file__).resolve().parents[1] / "Resources" / "SampleData"
CATEGORY = "MedSeg"


@dataclass(frozen=True)
class SampleFile:
    """A volume of a case: its file in the case's folder, its name in the scene, its SHA-256."""

    file: str
    nodeName: str
    sha256: str


@dataclass(frozen=True)
class SampleCase:
    """The volumes of one patient."""

    name: str
    folder: str
    thumbnail: str
    files: tuple[SampleFile, ...]

    def uris(self) -> list[str]:
        """Where the files are: in the local checkout when they lie there, else on the web."""
        found = []
        for file in self.files:
            path = LOCAL / self.folder / file.file
            found.append(path.as_uri() if path.is_file() else f"{URL}/{self.folder}/{file.file}")
        return found


CASES = (
    SampleCase(
        "MedSegMS", "ms_sample", "MedSegMS.png",
        (
            SampleFile("t1.nii.gz", "MS T1",
                       "806390c038dc4cfb14e29a2a6376d2808b0643c2d344f245918f7512176b9119"),
            SampleFile("t2.nii.gz", "MS T2",
                       "fb7c376e00b8abeb7a64fc99d3ababe9aa31369a29679f1b30ab31ea47545400"),
            SampleFile("flair.nii.gz", "MS FLAIR",
                       "90af64939641202bf2729d9943e7c677b284694c59dd90754e39abeeb2363375"),
        ),
    ),
    SampleCase(
        "MedSegProstate", "prostate_sample", "MedSegProstate.png",
        (
            SampleFile("t2w.nii.gz", "Prostate T2W",
                       "1892a68b6c0db40078532bf23278224c86d18b4ccfac3f132f435b2d2a0992ec"),
            SampleFile("adc.nii.gz", "Prostate ADC",
                       "a45e098ad4fa58b67fa022c7a1b3b56c474020a38f07fd0fe630e0917b373a83"),
        ),
    ),
)  # fmt: skip


def registerSampleCases() -> None:
    """Show the cases in the Sample Data module; for the application's startupCompleted()."""
    import SampleData

    for case in CASES:
        SampleData.SampleDataLogic.registerCustomSampleDataSource(
            category=CATEGORY,
            sampleName=case.name,
            thumbnailFileName=str(THUMBNAILS / case.thumbnail),
            uris=case.uris(),
            # The cache is one folder for everything that is ever downloaded.
            fileNames=[f"{case.name}-{file.file}" for file in case.files],
            nodeNames=[file.nodeName for file in case.files],
            checksums=[f"SHA256:{file.sha256}" for file in case.files],
        )
