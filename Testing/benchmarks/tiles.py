"""Our tiles against MONAI's sliding window: the same network, tiles, overlap and weights.

    python Testing/benchmarks/tiles.py

Prints the median time of each and its ratio to MONAI's with one window at a time. All run
alternately in one process on the sample cases, so that the machine's mood hits all.
"""

import functools
import statistics
import sys
import time
from pathlib import Path

import torch
from monai.inferers import sliding_window_inference

from medsegcore.imaging import read_image
from medsegcore.inference.predictor import Predictor
from medsegcore.inference.preprocess import prepare

DATA = Path(__file__).resolve().parents[1] / "data"
CASES = {
    "ms-lesion-rsanet": {
        key: DATA / "ms_sample" / f"{key}.nii.gz" for key in ("t1", "t2", "flair")
    },
    "prostate-gland-edge": {"t2w": DATA / "prostate_sample" / "t2w.nii.gz"},
}
REPEATS = 5


def measure(model: str, files: dict[str, Path]) -> dict[str, float]:
    """Median seconds by who ran."""
    predictor = Predictor(model, device="cpu")
    grid = predictor.description.grid
    images = {key: read_image(path) for key, path in files.items()}
    prepared = prepare(predictor.description, images)
    x = torch.from_numpy(prepared.tensor)[None].contiguous(memory_format=torch.channels_last_3d)

    def ours() -> float:
        return predictor.predict(images, attention=False).timings["segment"]

    @torch.inference_mode()
    def theirs(windows: int) -> float:
        started = time.perf_counter()
        sliding_window_inference(
            x, grid.tile, windows, lambda t: torch.softmax(predictor.network(t), dim=1),
            overlap=grid.overlap, mode=grid.blend,
        )  # fmt: skip
        return time.perf_counter() - started

    runs = {
        "MedSeg": ours,
        "MONAI, a window at a time": functools.partial(theirs, 1),
        "MONAI, 4 windows at a time": functools.partial(theirs, 4),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(REPEATS):
        for name, run in runs.items():
            times[name].append(run())
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> int:
    """Measure and print one Markdown row each."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, median of {REPEATS}")
    print("| model | tiles of | seconds | ratio |\n|---|---|---|---|")
    for model, files in CASES.items():
        medians = measure(model, files)
        for name, seconds in medians.items():
            ratio = seconds / medians["MONAI, a window at a time"]
            print(f"| {model} | {name} | {seconds:.2f} | {ratio:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
