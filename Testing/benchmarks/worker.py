"""A warm run of the worker against `medseg predict` as a fresh process, on the sample case.

    python Testing/benchmarks/worker.py [REPEATS]

Prints the median time of each and their ratio. Both run alternately on the CPU, so that the
machine's mood hits both; the worker's first run, which loads torch and the model, stands apart.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from medsegcore.imaging import read_image
from medsegcore.worker.client import WorkerClient

SAMPLE = Path(__file__).resolve().parents[1] / "data" / "ms_sample"
MODEL = "ms-lesion-rsanet"


def main(repeats: int = 3) -> int:
    """Measure and print one Markdown row each."""
    files = {key: SAMPLE / f"{key}.nii.gz" for key in ("t1", "t2", "flair")}
    client = WorkerClient([sys.executable, "-m", "medsegcore.worker"], os.environ)

    def warm() -> float:
        started = time.perf_counter()
        images = {key: read_image(path) for key, path in files.items()}
        client.wait(client.predict(MODEL, images, {"device": "cpu"}))
        return time.perf_counter() - started

    def fresh() -> float:
        command = [sys.executable, "-m", "medsegcore", "predict", "--model", MODEL]
        command += ["--device", "cpu", "--json"]
        for key, path in files.items():
            command += [f"--{key}", str(path)]
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            subprocess.run(
                [*command, "--out", f"{folder}/result"], check=True, stdout=subprocess.DEVNULL
            )
            return time.perf_counter() - started

    try:
        first = warm()
        times: dict[str, list[float]] = {"worker, warm": [], "`medseg predict`": []}
        for _ in range(repeats):
            times["worker, warm"].append(warm())
            times["`medseg predict`"].append(fresh())
    finally:
        client.close()
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"Median of {repeats}; the worker's first run: {first:.2f} s")
    print("| run | seconds | ratio to `medseg predict` |\n|---|---|---|")
    for name, seconds in medians.items():
        print(f"| {name} | {seconds:.2f} | {seconds / medians['`medseg predict`']:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main(*[int(argument) for argument in sys.argv[1:]]))
