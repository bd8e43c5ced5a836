"""Our tiles against MONAI's sliding window: the same network, tiles, overlap and weights.

    python Testing/benchmarks/tiles.py

Prints the median time of each, their ratio. Both run
alternately in one process on the sample case, so that the machine's mood hits both.
"""

import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from monai.inferers import sliding_window_inference

from medsegcore.imaging import read_image
from medsegcore.inference.predictor import Predictor
from medsegcore.inference.preprocess import prepare

SAMPLE = Path(__file__).resolve().parents[1] / "data" / "ms_sample"
REPEATS = 5


def main() -> int:
    """Measure and print one Markdown row each."""
    predictor = Predictor("ms-lesion-rsanet", device="cpu")
    grid = predictor.description.grid
    images = {key: read_image(SAMPLE / f"{key}.nii.gz") for key in ("t1", "t2", "flair")}
    prepared = prepare(predictor.description, images)
    x = torch.from_numpy(prepared.tensor)[None].contiguous(memory_format=torch.channels_last_3d)

    def ours() -> tuple[float, np.ndarray]:
        result = predictor.predict(images, attention=False)
        return result.timings["segment"], result.probabilities["MS lesion"]

    @torch.inference_mode()
    def theirs() -> tuple[float, np.ndarray]:
        started = time.perf_counter()
        answer = sliding_window_inference(
            x, grid.tile, 1, lambda t: torch.softmax(predictor.network(t), dim=1),
            overlap=grid.overlap, mode="gaussian",
        )  # fmt: skip
        return time.perf_counter() - started, answer[0, 1].numpy()

    times: dict[str, list[float]] = {"MedSeg": [], "MONAI": []}
    for _ in range(REPEATS):
        for name, run in (("MedSeg", ours), ("MONAI", theirs)):
            seconds, _ = run()
            times[name].append(seconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, median of {REPEATS}")
    print("| tiles of | seconds | ratio to MONAI |\n|---|---|---|")
    for name, seconds in medians.items():
        print(f"| {name} | {seconds:.2f} | {seconds / medians['MONAI']:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
