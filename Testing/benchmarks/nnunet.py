"""nnU-Net v2 on the MS cases with a budget of CPU time, beside the shipped model.

    pip install nnunetv2==2.8.1          # into an environment that has medsegcore
    python Testing/benchmarks/nnunet.py --data ../shared/data/ms --minutes 38 --memory-gb 1 \\
        --work /tmp/nnunet

The same split (patient19 is never trained on) and the same measures as `medseg evaluate`. The
budget is CPU time of the training process and its children, so that what else runs on the machine
does not count. nnU-Net plans, trains, and predicts by its own defaults, but for three things that
the budget asks for: its thousand epochs become the budget, with its own poly schedule over it;
`--memory-gb` is what it is to plan its patch for; it is not compiled. It takes no optional input:
it gets T1 and FLAIR, which all patients have.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

DATASET = "Dataset001_MS"
CHANNELS = ("t1", "flair")


def main() -> None:
    """Make the data set, plan, train, predict, measure, and write a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of cases")
    parser.add_argument("--test", default="patient19", help="patient that is never trained on")
    parser.add_argument("--minutes", type=float, required=True, help="CPU minutes of training")
    parser.add_argument("--memory-gb", type=float, default=8.0, help="to plan the patch for")
    parser.add_argument("--configuration", default="3d_fullres", help="or 2d")
    parser.add_argument("--work", type=Path, required=True, help="folder for nnU-Net's files")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    # nnU-Net reads these when it is imported.
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(work / name)
    os.environ.update(nnUNet_compile="f", nnUNet_n_proc_DA="1", nnUNet_def_n_proc="1")
    test = write_raw(arguments.data, work / "raw" / DATASET, arguments.test)
    plans = plan(arguments.memory_gb, arguments.configuration)
    steps = train(plans, arguments.configuration, arguments.minutes, work)
    figures = predict_and_measure(arguments.configuration, work, test)
    chosen = plans["configurations"][arguments.configuration]
    print(
        json.dumps(
            {
                "configuration": arguments.configuration, "minutes": arguments.minutes,
                "steps": steps, "patch": chosen["patch_size"], "batch": chosen["batch_size"],
                "figures": figures,
            }
        )
    )  # fmt: skip


def write_raw(data: Path, out: Path, test_patient: str):
    """The cases in nnU-Net's raw form; gives the test cases."""
    from medsegcore.training.datasets import read_dataset

    cases = read_dataset(data, keys=CHANNELS).cases
    training = [case for case in cases if case.patient != test_patient]
    test = [case for case in cases if case.patient == test_patient]
    for folder in ("imagesTr", "labelsTr", "imagesTs"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for part, of_part in (("Tr", training), ("Ts", test)):
        for case in of_part:
            for n, key in enumerate(CHANNELS):
                target = out / f"images{part}" / f"{case.id}_{n:04d}.nii.gz"
                shutil.copyfile(case.images[key], target)
            if part == "Tr":
                shutil.copyfile(case.label, out / "labelsTr" / f"{case.id}.nii.gz")
    description = {
        "channel_names": {str(n): key for n, key in enumerate(CHANNELS)},
        "labels": {"background": 0, "lesion": 1},
        "numTraining": len(training),
        "file_ending": ".nii.gz",
    }
    (out / "dataset.json").write_text(json.dumps(description))
    return test


def plan(memory_gb: float, configuration: str) -> dict:
    """nnU-Net's own planning and preprocessing."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprints,
        plan_experiments,
        preprocess,
    )
    from nnunetv2.paths import nnUNet_preprocessed

    extract_fingerprints([1], num_processes=1, check_dataset_integrity=True, clean=True)
    plan_experiments([1], gpu_memory_target_in_gb=memory_gb)
    preprocess([1], configurations=(configuration,), num_processes=(1,))
    folder = Path(str(nnUNet_preprocessed)) / DATASET
    return json.loads((folder / "nnUNetPlans.json").read_text(encoding="utf-8"))


def train(plans: dict, configuration: str, minutes: float, work: Path) -> int:
    """Train on all training cases for that many CPU minutes; gives the number of steps."""
    import psutil
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    process = psutil.Process()

    def spent() -> float:
        tree = [process, *process.children(recursive=True)]
        return sum(sum(p.cpu_times()[:2]) for p in tree if p.is_running())

    dataset = json.loads((work / "raw" / DATASET / "dataset.json").read_text(encoding="utf-8"))
    trainer = nnUNetTrainer(
        {**plans, "continue_training": False}, configuration, "all", dataset, torch.device("cpu")
    )
    trainer.on_train_start()
    trainer.network.train()
    start, steps, losses = spent(), 0, []
    while (share := (spent() - start) / (60 * minutes)) < 1:
        for group in trainer.optimizer.param_groups:
            group["lr"] = trainer.initial_lr * (1 - share) ** 0.9
        losses.append(float(trainer.train_step(next(trainer.dataloader_train))["loss"]))
        steps += 1
        if steps % 10 == 0:
            print(f"{share:.1%}, {steps} steps, loss {sum(losses[-10:]) / 10:.3f}", file=sys.stderr)
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    for loader in (trainer.dataloader_train, trainer.dataloader_val):
        if hasattr(loader, "_finish"):
            loader._finish()
    return steps


def predict_and_measure(configuration: str, work: Path, test: list):
    """Predict every test case and measure it against its mask, as `medseg evaluate` does."""
    import numpy as np
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    from medsegcore.evaluation.evaluate import compare_masks
    from medsegcore.evaluation.metrics import dice_by_threshold
    from medsegcore.imaging import read_image, resample

    results = work / "results" / DATASET / f"nnUNetTrainer__nnUNetPlans__{configuration}"
    predictor = nnUNetPredictor(
        device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False
    )
    predictor.initialize_from_trained_model_folder(str(results), ("all",), "checkpoint_final.pth")
    out = work / "predicted"
    out.mkdir(exist_ok=True)
    folder = work / "raw" / DATASET / "imagesTs"
    predictor.predict_from_files_sequential(str(folder), str(out), save_probabilities=True)
    figures = {}
    for case in test:
        answer = read_image(out / f"{case.id}.nii.gz")
        reference = resample(read_image(case.label), answer.grid, "nearest").array > 0
        figures[case.id] = {
            figure.column: figure.value
            for figure in compare_masks(answer.array > 0, reference, answer.grid)
        }
        probability = np.load(out / f"{case.id}.npz")["probabilities"][1]
        figures[case.id]["best threshold Dice"] = max(dice_by_threshold(probability, reference))
        print(case.id, f"Dice {figures[case.id]['Dice']:.3f}", file=sys.stderr)
    return figures


if __name__ == "__main__":
    main()
