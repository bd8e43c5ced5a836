"""Every network: parameters, operations, time and memory on a CPU, beside the published figures.

    python Testing/benchmarks/networks.py            # writes Testing/benchmarks/networks.md

All are of one forward pass in evaluation mode, each network in a process of its own; time also as
the ratio to a U-Net of MONAI with the same dimensions and size of input, measured alternately in
the same process.
"""

import json
import math
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from medsegcore.networks import create_network

TARGET = Path(__file__).with_suffix(".md")
REPEATS = 3
# (network, config, size of the input, published parameters in millions, published giga-operations)
ROWS: list[tuple[str, dict[str, Any], tuple[int, ...], str, str]] = [
    ("csad", {"fusion": "scff"}, (256, 256), "", ""),
    ("csad", {"fusion": "concat"}, (256, 256), "", ""),
    ("csad", {"fusion": "early"}, (256, 256), "", ""),
    ("edge_attention", {}, (32, 96, 96), "", ""),
    ("edge_attention_pretraining", {}, (32, 96, 96), "85.75", ""),
    ("rsanet", {}, (64, 64, 64), "24.55", ""),
    ("rsanet", {"placement": "111"}, (64, 64, 64), "", ""),
    ("rsanet", {"block": "nonlocal"}, (64, 64, 64), "", ""),
    ("rsanet", {"placement": "000"}, (64, 64, 64), "23.77", ""),
    ("ummkd_2d", {"sharing": "joint"}, (256, 256), "39.32", ""),
    ("ummkd_2d", {"sharing": "ours"}, (256, 256), "39.34", ""),
    ("ummkd_2d", {"sharing": "individual"}, (256, 256), "78.64", ""),
    ("ummkd_3d", {"sharing": "joint"}, (8, 256, 256), "1.916", ""),
    ("ummkd_3d", {"sharing": "ours"}, (8, 256, 256), "1.919", ""),
    ("unetpp", {}, (384, 384), "36.6", "621.38"),
    ("deeplabv3plus", {}, (384, 384), "54.75 (56.8 with a head that never runs)", "273.94"),
    ("enet", {}, (384, 384), "0.336 (0.353 with a block that never runs)", "2.2"),
    ("espnet", {}, (384, 384), "0.183", "1.27"),
    ("erfnet", {}, (384, 384), "2.06", "16.56"),
    ("multiresunet", {"out_channels": 1}, (256, 256), "7.251", ""),
    ("hyperdensenet", {"out_channels": 4}, (32, 32, 32), "10.36", ""),
    ("fusion_unet", {"fusion": "fuse"}, (256, 256), "", ""),
    ("fusion_unet", {"fusion": "octopus"}, (256, 256), "", ""),
    ("fusion_unet", {"fusion": "late"}, (256, 256), "", ""),
    ("unet", {}, (256, 256), "", ""),
]


def measured(name: str, config: dict[str, Any], size: tuple[int, ...]) -> dict[str, float]:
    """Run in a child: seconds, the ratio to MONAI's U-Net, and MiB above what was in use."""
    torch.manual_seed(0)
    networks = {
        "peer": create_network("unet", {"dimensions": len(size), "width": 32}).eval(),
        "own": create_network(name, config).eval(),
    }
    inputs = {
        key: torch.randn(1, network.config.in_channels, *size) for key, network in networks.items()
    }
    weights = sum(p.numel() * 4 for p in networks["own"].parameters()) / 2**20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    times: dict[str, list[float]] = {"own": [], "peer": []}
    parameters = sum(p.numel() for p in networks["own"].parameters())
    with torch.inference_mode():
        with FlopCounterMode(display=False) as counter:
            networks["own"](inputs["own"])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        networks["peer"](inputs["peer"])
        for _ in range(REPEATS):
            for key in times:
                started = time.perf_counter()
                networks[key](inputs[key])
                times[key].append(time.perf_counter() - started)
    seconds, peer = min(times["own"]), min(times["peer"])
    return {
        "millions": parameters / 1e6, "giga": counter.get_total_flops() / 1e9,
        "seconds": seconds, "ratio": seconds / peer, "mib": peak - before + weights,
    }  # fmt: skip


def main() -> int:
    """Measure all rows and write the table."""
    if len(sys.argv) > 1:
        name, config, size = json.loads(sys.argv[1])
        print(json.dumps(measured(name, config, tuple(size))))
        return 0
    lines = [
        "# Networks",
        "",
        "Made by `python Testing/benchmarks/networks.py`: torch "
        f"{torch.__version__}, CPU, {torch.get_num_threads()} threads, fp32, one forward pass in "
        f"evaluation mode, the best of {REPEATS}.",
        "",
        "GFLOP counts convolutions and matrix products, a multiplication and its addition as two, "
        "as table 1 of the affinity paper does, which also holds all other layers. "
        "Memory is the process's peak above what was in use before, "
        "with the weights. The ratio is to a U-Net of width 32 (MONAI's BasicUNet) on the same "
        "size, in the same process.",
        "",
        "| network | setting | input | parameters, M | published | GFLOP | published | time, s "
        "| ratio to U-Net | memory, MiB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, config, size, parameters, operations in ROWS:
        command = [sys.executable, __file__, json.dumps([name, config, size])]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        figures = json.loads(done.stdout)
        millions, giga = figures["millions"], figures["giga"]
        setting = ", ".join(f"{k} {v}" for k, v in config.items()) or "as published"
        digits = max(0, 3 - math.ceil(math.log10(max(millions, 0.1))))
        lines.append(
            f"| {name} | {setting} | {' x '.join(map(str, size))} | {millions:.{digits}f} "
            f"| {parameters or '-'} | {giga:.2f} | {operations or '-'} "
            f"| {figures['seconds']:.2f} | {figures['ratio']:.2f} | {figures['mib']:.0f} |"
        )
        print(lines[-1], flush=True)
    TARGET.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
