"""The RSA block against the non-local block at the same place of RSANet.

    python Testing/benchmarks/attention_blocks.py    # writes Testing/benchmarks/attention_blocks.md

The paper says "at least 28 times" less GPU memory and "at least 100 times" fewer operations. Both
are counted here for the attention alone (the matrices, and the products with them) and for the
whole block with its convolutions; the peak of a training step of the block is measured on the CPU,
each in a process of its own. The input of the network is the paper's family: 160 x 160 x 80 voxels,
and 64 x 64 x 64 patches.
"""

import json
import resource
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from medsegcore.networks.blocks import NonLocalBlock3d
from medsegcore.networks.rsanet import RSABlock

TARGET = Path(__file__).with_suffix(".md")
# (place in RSANet of width 32, channels, D x H x W there)
PLACES = [
    ("bottom, input 80 x 160 x 160", 512, (5, 10, 10)),
    ("level above the bottom, input 80 x 160 x 160", 256, (10, 20, 20)),
    ("two above, input 80 x 160 x 160", 128, (20, 40, 40)),
]
BLOCKS: dict[str, type[nn.Module]] = {"RSA": RSABlock, "non-local": NonLocalBlock3d}


def counted(kind: str, channels: int, size: tuple[int, ...]) -> dict[str, float]:
    """Giga-multiply-additions of the block and of its attention, and the matrices' MiB."""
    block, x = BLOCKS[kind](channels), torch.randn(1, channels, *size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        _, attention = block(x)
    flops = {str(k): v for k, v in counter.get_flop_counts()["Global"].items()}
    products = sum(v for k, v in flops.items() if "conv" not in k)
    matrices = list(attention.values()) if isinstance(attention, dict) else [attention]
    return {
        "block": sum(flops.values()) / 2e9,
        "attention": products / 2e9,
        "matrices": sum(a.numel() for a in matrices) * 4 / 2**20,
    }


def measured(kind: str, channels: int, size: tuple[int, ...]) -> float:
    """MiB that a forward and backward pass of the block takes above what was in use before."""
    torch.manual_seed(0)
    block, x = BLOCKS[kind](channels), torch.randn(1, channels, *size, requires_grad=True)
    # A first small pass brings in what the libraries need themselves.
    block(torch.randn(1, channels, 2, 2, 2))[0].sum().backward()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    block(x)[0].sum().backward()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> int:
    """Count and measure all places and write the table."""
    if len(sys.argv) > 1:
        kind, channels, size = json.loads(sys.argv[1])
        print(measured(kind, channels, tuple(size)))
        return 0
    lines = [
        "# RSA block against non-local block",
        "",
        f"Made by `python Testing/benchmarks/attention_blocks.py`: torch {torch.__version__}, CPU, "
        "fp32, batch of one. G is 1e9 multiply-additions; ratios are non-local / RSA. The "
        "non-local block has half the channels inside, as in its own paper.",
        "",
        "| place | channels | positions | attention, G | ratio | matrices, MiB | ratio "
        "| whole block, G | ratio | peak of a training step, MiB | ratio |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for place, channels, size in PLACES:
        figures = {}
        for kind in BLOCKS:
            command = [sys.executable, __file__, json.dumps([kind, channels, size])]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            figures[kind] = {**counted(kind, channels, size), "peak": float(done.stdout)}
        own, peer = figures["RSA"], figures["non-local"]
        cells = [f"{place} | {channels} | {' x '.join(map(str, size))}"]
        for key in ("attention", "matrices", "block", "peak"):
            ratio = peer[key] / own[key] if own[key] else float("inf")
            cells.append(f"{own[key]:.3g} / {peer[key]:.3g} | {ratio:.3g}")
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    TARGET.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
