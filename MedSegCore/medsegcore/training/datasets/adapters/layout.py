"""What the adapters of public data sets share: from files as downloaded to nnU-Net's raw form."""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from medsegcore.errors import DatasetError, MissingInputError, OutputError
from medsegcore.files import write_file
from medsegcore.imaging import Image, read_image, write_image
from medsegcore.rawdata import (
    DATASET_FILE,
    ENDING,
    IMAGES,
    LABELS,
    ChannelFacts,
    image_name,
    json_text,
    label_name,
    raw_content,
)
from medsegcore.training.datasets.dataset import Channel, Dataset, read_dataset
from medsegcore.training.datasets.sources import Source

Values = Mapping[int, int] | int
ImageSource = Path | Callable[[], Image]


@dataclass(frozen=True)
class Found:
    """One case of a download.

    Attributes:
        images: by channel key, a file or a function that reads one.
        label: the same; integer values as `Adapter.labels` has them.
    """

    id: str
    patient: str
    site: str
    images: dict[str, ImageSource]
    label: ImageSource


@dataclass(frozen=True)
class Adapter:
    """How a public data set becomes one of ours.

    Attributes:
        layout: the folders and files that are expected, and where that is known from.
        channels: by key.
        labels: value by name.
        find: the cases under a folder.
    """

    name: str
    source: Source
    layout: str
    channels: dict[str, Channel]
    labels: dict[str, int]
    find: Callable[[Path], Iterable[Found]] = field(repr=False)

    def convert(
        self,
        source: str | Path,
        out: str | Path,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> Dataset:
        """Write what is found under `source` as a data set `out`, as a whole or not at all.

        NIfTI files that need no change become hard links where the disk allows it: change
        neither. The rest is converted.

        Args:
            progress: called with (case, done, total).

        Raises:
            MissingInputError: nothing of that layout is there.
            DatasetError: a required file is missing, or a mask has a value that is not known.
            OutputError: `out` exists, or cannot be written.
        """
        source, out = Path(source), Path(out)
        if out.exists():
            raise OutputError(f"'{out}' exists already.", "Choose another folder.")
        cases = sorted(self.find(source), key=lambda case: case.id)
        if not cases:
            raise MissingInputError(
                f"There is no case of '{self.name}' under '{source}'.", f"Expected: {self.layout}"
            )
        names = [case.id for case in cases]
        for name in names:
            if names.count(name) > 1:
                raise DatasetError(
                    f"'{source}' holds the case '{name}' twice.", "Give a folder with one copy."
                )
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        except OSError as error:
            raise OutputError(f"'{out}' cannot be made: {error.strerror}.") from error
        try:
            self._write(cases, folder, progress)
            folder.chmod(0o755)
            os.replace(folder, out)
        except OSError as error:
            raise OutputError(
                f"'{out}' cannot be written: {error.strerror}.", "Check the free space."
            ) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return read_dataset(out)

    def _write(
        self,
        cases: Sequence[Found],
        folder: Path,
        progress: Callable[[str, int, int], None] | None,
    ) -> None:
        images, labels = folder / IMAGES, folder / LABELS
        images.mkdir()
        labels.mkdir()
        for done, case in enumerate(cases):
            if progress is not None:
                progress(case.id, done, len(cases))
            for n, (key, channel) in enumerate(self.channels.items()):
                if key in case.images:
                    _place(case.images[key], images / image_name(case.id, n))
                elif channel.required:
                    raise DatasetError(
                        f"The case '{case.id}' has no '{key}'.", f"Expected: {self.layout}"
                    )
            _place(case.label, labels / label_name(case.id))
        if progress is not None:
            progress("", len(cases), len(cases))
        part = {
            "patients": {case.id: case.patient for case in cases},
            "sites": {case.id: case.site for case in cases},
            "license": self.source.license,
            "citation": self.source.citation,
            "commercial_use": self.source.commercial_use,
            "skull_stripped": self.source.skull_stripped,
            "masks": self.source.masks,
            "url": self.source.url,
            "optional": [key for key, c in self.channels.items() if not c.required],
        }
        channels = {
            c.title: ChannelFacts(key=key, modality=c.modality, units=c.units)
            for key, c in self.channels.items()
        }
        content = raw_content(
            self.name, self.source.title, channels, self.labels, len(cases), part
        )  # fmt: skip
        write_file(folder / DATASET_FILE, json_text(content))


def _place(source: ImageSource, target: Path) -> None:
    """Link, copy, or convert one image."""
    if not isinstance(source, Path):
        write_image(source(), target)
    elif not source.name.endswith(ENDING):
        write_image(read_image(source), target)
    else:
        try:
            os.link(source.resolve(), target)
        except OSError:
            # Another disk, or one without links.
            shutil.copyfile(source, target)


def painted(parts: Iterable[tuple[Path, Values]]) -> Callable[[], Image]:
    """A label map from one or several mask files, the later ones over the earlier ones.

    Args:
        parts: file, and the new value by the file's value (0 stays 0), or one new value for
            everything above 0.
    """
    parts = list(parts)

    def read() -> Image:
        first = read_image(parts[0][0])
        label = np.zeros(first.shape, np.uint8)
        for path, values in parts:
            mask = read_image(path)
            if not mask.grid.same_as(first.grid, tolerance_mm=0.1):
                raise DatasetError(
                    f"'{path.name}' lies on another grid than '{parts[0][0].name}'.",
                    "Masks of one image have to share its grid.",
                )
            if isinstance(values, int):
                label[mask.array > 0] = values
                continue
            unknown = set(np.unique(mask.array).tolist()) - {0, *values}
            if unknown:
                raise DatasetError(
                    f"'{path.name}' has the value {min(unknown):g}, which is not known.",
                    f"Known: 0, {', '.join(str(value) for value in values)}.",
                )
            for old, new in values.items():
                label[mask.array == old] = new
        return first.with_array(label)

    return read


def matches(root: Path, pattern: str) -> Iterator[tuple[Path, dict[str, str]]]:
    """Files whose path, or the end of it, is of that pattern, and what its named groups are."""
    expression = re.compile(f"(?:.*/)?{pattern}")
    for folder, folders, files in os.walk(root, followlinks=True):
        folders.sort()
        for name in sorted(files):
            path = Path(folder) / name
            match = expression.fullmatch(path.relative_to(root).as_posix())
            if match is not None and not name.startswith("."):
                yield path, {key: value or "" for key, value in match.groupdict().items()}


def by_label(
    pattern: str,
    images: Mapping[str, str],
    values: Values | None,
    case: str,
    patient: str = "",
    site: str | Callable[[dict[str, str]], str] = "",
) -> Callable[[Path], Iterator[Found]]:
    """A `find` for sets with one mask file per case and images that are named after it.

    Args:
        pattern: of the mask's path; its named groups fill the templates.
        images: template of each channel's path, from the mask's folder; the first of several,
            parted by "|", that is there.
        values: as `painted` takes them; None when the mask is as it should be.
        case, patient, site: templates; the patient is the case when empty.
    """

    def find(root: Path) -> Iterator[Found]:
        for path, groups in matches(root, pattern):
            found = {}
            for key, templates in images.items():
                for template in templates.split("|"):
                    file = path.parent / template.format(**groups)
                    if key not in found and file.exists():
                        found[key] = file
            name = case.format(**groups)
            yield Found(
                id=name,
                patient=patient.format(**groups) or name,
                site=site(groups) if callable(site) else site.format(**groups),
                images=dict(found),
                label=path if values is None else painted([(path, values)]),
            )

    return find
