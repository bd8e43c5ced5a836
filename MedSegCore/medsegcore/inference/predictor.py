"""The one way from images through a model to a result."""

import functools
import itertools
import platform
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import medsegcore
from medsegcore.errors import (
    ModelSchemaError,
    OutOfMemoryError,
    SettingError,
    is_out_of_memory,
)
from medsegcore.imaging import Grid, Image, Region, resample
from medsegcore.inference.attention import (
    DEVIATION,
    HIGHEST,
    SHARE,
    Attention,
    SpatialAttention,
    correlation_attention,
)
from medsegcore.inference.clock import Clock, Progress
from medsegcore.inference.collected import CollectedAttention
from medsegcore.inference.devices import choose_device, choose_precision
from medsegcore.inference.lesions import find_lesions, label_voxels
from medsegcore.inference.preprocess import Prepared, check_keys, prepare, with_neighbours
from medsegcore.inference.result import Result, check_thresholds
from medsegcore.inference.tiling import (
    plan_tiles,
    smaller_tile,
    tile_weights,
    tiles_at_once,
)
from medsegcore.inference.uncertainty import DROPOUT, SPREAD, entropy_map
from medsegcore.models import AttentionSpec, GridSpec, ModelDescription, ModelFolder, ModelStore
from medsegcore.networks import takes_modality

STAGES = ("prepare", "segment", "restore", "measure")


class Predictor:
    """A model that is ready to segment; keep it to segment again without loading.

    Args:
        model_folder: a `ModelFolder`, its path, or the id of a model that the store knows.
        device: "auto", "cpu", "mps", "cuda" or "cuda:N".
        precision: of the convolutions: "auto", "fp32", "bf16" or "fp16".

    Raises:
        ModelError: the model is not there or not sound.
        DeviceError: the device or the precision cannot be had.
    """

    def __init__(
        self,
        model_folder: str | Path | ModelFolder,
        device: str = "auto",
        precision: str = "auto",
    ):
        if not isinstance(model_folder, ModelFolder):
            model_folder = ModelStore().find(model_folder)
        where = choose_device(device)
        dtype = choose_precision(precision, where)
        self._take(model_folder.description, model_folder.load_network(), where, dtype)

    @classmethod
    def of(
        cls,
        description: ModelDescription,
        network: nn.Module,
        device: str = "auto",
        precision: str = "auto",
    ) -> "Predictor":
        """A predictor of a network in memory, e.g. one in training; it has to be in eval mode."""
        predictor = cls.__new__(cls)
        where = choose_device(device)
        predictor._take(description, network, where, choose_precision(precision, where))
        return predictor

    def _take(
        self,
        description: ModelDescription,
        network: nn.Module,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.description, self.device, self.dtype = description, device, dtype
        if network.dimensions != (2 if self.description.grid.flat else 3):
            raise ModelSchemaError(
                f"The network '{self.description.network.name}' works in {network.dimensions}D "
                f"but the grid of the model says {self.description.grid.dimensionality}.",
                "Ask whoever made the model to correct model.json.",
            )
        inputs, config = len(self.description.inputs), getattr(network, "config", None)
        apart = getattr(config, "modalities", 0) if takes_modality(network) else inputs
        if self.description.one_of and apart != inputs:
            raise ModelSchemaError(
                f"The model takes one of {inputs} inputs but its network "
                f"'{self.description.network.name}' tells {apart} modalities apart.",
                "Ask whoever made the model to correct model.json.",
            )
        # 3D convolutions run twice as fast so on CPUs.
        self.layout = (
            torch.contiguous_format if self.device.type == "mps"
            else torch.channels_last if self.description.grid.flat
            else torch.channels_last_3d
        )  # fmt: skip
        network.to(memory_format=self.layout)  # type: ignore[call-overload]
        self.network = network.to(self.device)

    def predict(
        self,
        images: Mapping[str, Image],
        *,
        mirror: bool = False,
        attention: bool = True,
        uncertainty: bool = False,
        dropout: int = 0,
        thresholds: Mapping[str, float] | None = None,
        min_lesion_ml: float = 0.0,
        region: Region | None = None,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Result:
        """Segment one case.

        Args:
            images: Image by input key of the model.
            mirror: average over the mirrorings of each tile or slice that the model knows from its
                training: eight for all three axes, at eight times the time.
            attention: also give the network's attention maps.
            uncertainty: also give, as spatial maps beside the attention, the entropy of the
                answer and, when `mirror` changes it, the standard deviation over the mirrorings.
            dropout: so many more passes of each tile with the network's dropout switched on; also
                give their standard deviation, as a spatial map. The answer stays the same.
            thresholds: by label name, 0..1; the model's own where none is given.
            min_lesion_ml: smaller connected components are dropped.
            region: a box to work in; the answer is 0 outside of it.
            progress: called with (stage, done, total, seconds left or None); stages: "prepare",
                "segment", "restore", "measure".
            cancelled: asked between tiles.

        Raises:
            InputError: see `prepare`; SettingError for a threshold or volume out of range, and for
                `dropout` with a network that has none.
            CancelledError: `cancelled` said so.
            OutOfMemoryError: even small tiles do not fit.
        """
        cut = check_thresholds(self.description.labels, thresholds or {})
        if not min_lesion_ml >= 0:
            raise SettingError(
                f"The smallest lesion volume is {min_lesion_ml} ml.", "Give 0 ml or more."
            )
        self._check_dropout(dropout)
        check_keys(self.description, images)
        clock = Clock(progress, cancelled)
        clock.begin("prepare", 1)
        prepared = prepare(self.description, images, region)
        clock.step()
        specs = list(self.description.attention) if attention else []
        if uncertainty and mirror and len(_mirrorings(self.description.grid)) > 1:
            specs.append(SPREAD)
        if dropout:
            specs.append(DROPOUT)
        probabilities, collected = self._tiles(prepared, mirror, dropout, specs, clock)
        clock.begin("restore", len(self.description.labels) + len(collected.spatial))
        restored = self._restore(probabilities, prepared, clock)
        maps = self._attention(specs, collected, prepared, clock)
        if uncertainty:
            maps.append(entropy_map(restored))
        clock.begin("measure", 1)
        inputs = {
            key: resample(image, prepared.reference, outside=np.nan).array
            for key, image in prepared.raw.items()
        }
        labelmap, lesions = find_lesions(
            label_voxels(self.description.labels, restored, cut),
            prepared.reference, self.description.labels, restored, inputs, min_lesion_ml,
        )  # fmt: skip
        clock.step()
        clock.end()
        return Result(
            grid=prepared.reference,
            labels=list(self.description.labels),
            probabilities=restored,
            labelmap=labelmap,
            attention=maps,
            lesions=lesions,
            settings={
                "thresholds": cut, "min_lesion_ml": min_lesion_ml, "mirror": mirror,
                "device": str(self.device), "precision": str(self.dtype).removeprefix("torch."),
                "region": region.as_dict() if region is not None else None,
            },
            provenance=self._provenance(prepared),
            timings=clock.seconds,
        )  # fmt: skip

    def _tiles(
        self,
        prepared: Prepared,
        mirror: bool,
        dropout: int,
        specs: list[AttentionSpec],
        clock: Clock,
    ) -> tuple[np.ndarray, CollectedAttention]:
        """Run all tiles; when memory runs out, one at a time, then smaller ones."""
        tile: tuple[int, int, int] | None = self.description.grid.tile
        one_by_one = False
        while tile is not None:
            try:
                return self._run(prepared, tile, one_by_one, mirror, dropout, specs, clock)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
                if one_by_one or tiles_at_once(tile, self.description.grid) == 1:
                    tile = smaller_tile(tile, self.description.grid)
                one_by_one = True
        raise OutOfMemoryError(
            f"The memory of the device '{self.device}' does not hold even a small tile.",
            "Close other programs or use the device cpu.",
        )

    @torch.inference_mode()
    def _run(
        self,
        prepared: Prepared,
        tile: tuple[int, int, int],
        one_by_one: bool,
        mirror: bool,
        dropout: int,
        specs: list[AttentionSpec],
        clock: Clock,
    ) -> tuple[np.ndarray, CollectedAttention]:
        """Class probabilities [class, k, j, i] on the model grid, and the attention."""
        grid = self.description.grid
        shape = prepared.tensor.shape[1:]
        tiling = plan_tiles(shape, grid, tile)
        missing = [n - s for n, s in zip(tiling.padded, shape, strict=True)]
        volume = prepared.tensor
        if grid.neighbours:
            # Before the padding: the last slice is followed by itself, as in training.
            volume = with_neighbours(volume, grid.neighbours)
        volume = np.pad(volume, [(0, 0), *((0, n) for n in missing)])
        options = prepared.options if takes_modality(self.network) else {}
        network = functools.partial(self.network, **options)
        collected = CollectedAttention(specs, tiling)
        weights = tile_weights(tiling.tile, grid)
        weight_sum = np.zeros(tiling.padded, np.float32)
        total: np.ndarray | None = None
        flips: list[tuple[int, ...]] = _mirrorings(grid) if mirror else [()]
        clock.begin("segment", len(tiling.starts) * (len(flips) + dropout))
        places = list(zip(tiling.starts, tiling.boxes(), strict=True))
        count = 1 if one_by_one else tiles_at_once(tiling.tile, grid)
        for first in range(0, len(places), count):
            batch = places[first : first + count]
            x = self._tensor([volume[(slice(None), *box)] for _start, box in batch])
            answers, maps = self._batch(network, x, flips, specs, len(batch), clock)
            if dropout:
                maps[DROPOUT.key] = self._dropout_spread(network, x, dropout, len(batch), clock)
            for n, (start, box) in enumerate(batch):
                # The batch of a 2D network is the slices of one tile.
                own = slice(None) if grid.flat else slice(n, n + 1)
                answer = answers.swapaxes(0, 1) if grid.flat else answers[n]
                if total is None:
                    total = np.zeros((answer.shape[0], *tiling.padded), np.float32)
                total[(slice(None), *box)] += answer * weights
                weight_sum[box] += weights
                parts = {key: values[own] for key, values in maps.items()}
                collected.add(start, box, parts, weights, grid.flat)
        assert total is not None
        inner = tuple(slice(0, n) for n in shape)
        total /= weight_sum
        collected.finish(weight_sum, inner)
        return total[(slice(None), *inner)], collected

    def _tensor(self, tiles: Sequence[np.ndarray]) -> Tensor:
        """Tiles [C, k, j, i] as the network takes them: [B, C, k, j, i]; one as slices
        [k, C, j, i]."""
        flat = self.description.grid.flat
        x = torch.from_numpy(tiles[0].swapaxes(0, 1) if flat else np.stack(tiles))
        return x.to(self.device).contiguous(memory_format=self.layout)

    def _batch(
        self,
        network: Callable[..., Any],
        x: Tensor,
        flips: list[tuple[int, ...]],
        specs: list[AttentionSpec],
        tiles: int,
        clock: Clock,
    ) -> tuple[np.ndarray, dict[str, Tensor]]:
        """Probabilities [B, class, ...] of a batch, and the maps that `specs` ask for."""
        attention = any(spec not in (SPREAD, DROPOUT) for spec in specs)
        mean: Tensor | None = None
        views: list[Tensor] = []
        maps: dict[str, Tensor] = {}
        for axes in flips:
            clock.check()
            # The mirrored views attend to mirrored places: only the plain one is shown.
            if attention and not axes:
                probability, maps = self._probability(network, x, with_attention=True)
            else:
                probability, _ = self._probability(network, x.flip(axes) if axes else x)
            probability = probability.flip(axes) if axes else probability
            mean = probability if mean is None else mean + probability
            if SPREAD in specs:
                views.append(self._foreground(probability))
            clock.step(tiles)
        assert mean is not None
        highest = max(label.value for label in self.description.labels)
        if mean.shape[1] <= highest:
            raise ModelSchemaError(
                f"The network gives {mean.shape[1]} classes but a label has the value {highest}.",
                "Labels count from 1 and the background is class 0.",
            )
        mean = mean / len(flips)
        if views:
            maps = {**maps, SPREAD.key: torch.stack(views).std(dim=0, correction=0)}
        return mean.cpu().numpy(), maps

    def _probability(
        self, network: Callable[..., Any], x: Tensor, with_attention: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        maps: dict[str, Tensor] = {}
        with torch.autocast(
            self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32
        ):
            if with_attention:
                logits, maps = network(x, with_attention=True)
            else:
                logits = network(x)
        return torch.softmax(logits.float(), dim=1), maps

    def _dropout_layers(self) -> list[nn.Module]:
        kinds = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
        return [m for m in self.network.modules() if isinstance(m, kinds) and m.p > 0]

    def _check_dropout(self, passes: int) -> None:
        if passes < 0 or passes == 1:
            raise SettingError(
                f"The number of dropout passes is {passes}.", "Give 0, or 2 and more."
            )
        if passes and not self._dropout_layers():
            raise SettingError(
                f"The network '{self.description.network.name}' of this model has no dropout.",
                "Choose another kind of uncertainty.",
            )

    def _dropout_spread(
        self, network: Callable[..., Any], x: Tensor, passes: int, tiles: int, clock: Clock
    ) -> Tensor:
        """Standard deviation [B, 1, ...] over passes with dropout on; the same in each run."""
        layers, views = self._dropout_layers(), []
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(0)
            for layer in layers:
                layer.train()
            try:
                for _ in range(passes):
                    clock.check()
                    views.append(self._foreground(self._probability(network, x)[0]))
                    clock.step(tiles)
            finally:
                for layer in layers:
                    layer.eval()
        return torch.stack(views).std(dim=0, correction=0)

    def _foreground(self, probability: Tensor) -> Tensor:
        """Of any label: [B, class, ...] to [B, 1, ...]."""
        values = [label.value for label in self.description.labels]
        return probability[:, values].sum(dim=1, keepdim=True)

    def _restore(
        self, probabilities: np.ndarray, prepared: Prepared, clock: Clock
    ) -> dict[str, np.ndarray]:
        restored = {}
        inside = prepared.region.mask(prepared.reference) if prepared.region is not None else None
        for label in self.description.labels:
            on_grid = Image(probabilities[label.value], prepared.grid.affine)
            array = resample(on_grid, prepared.reference).array
            restored[label.name] = np.clip(array, 0, 1)
            if inside is not None:
                restored[label.name][~inside] = 0
            clock.step()
        return restored

    def _attention(
        self,
        specs: list[AttentionSpec],
        collected: CollectedAttention,
        prepared: Prepared,
        clock: Clock,
    ) -> list[Attention]:
        maps: list[Attention] = []
        # Padding and air are nothing that the network looked at.
        inside = (prepared.tensor != 0).any(axis=0)
        for spec in specs:
            if spec.key in collected.slices:
                summed = collected.slices[spec.key]
                maps.append(summed.result(spec.key, spec.title, prepared.grid))
            elif spec.key in collected.spatial:
                values = np.where(inside, collected.spatial[spec.key], 0)
                unit, scale = DEVIATION, 1.0
                if spec not in (SPREAD, DROPOUT):
                    unit, scale = SHARE, float(np.percentile(values[inside], 99.9)) or 1.0
                scaled = Image(np.clip(values / scale, 0, HIGHEST[unit]), prepared.grid.affine)
                array = resample(scaled, prepared.reference).array
                maps.append(SpatialAttention(spec.key, spec.title, array, scale, unit))
                clock.step()
            elif collected.correlation.get(spec.key):
                parts = collected.correlation[spec.key]
                maps.append(
                    correlation_attention(
                        spec.key, spec.title, parts, prepared.grid, collected.tiling
                    )
                )
        return maps

    def _provenance(self, prepared: Prepared) -> dict[str, Any]:
        d = self.description
        return {
            "model": {"id": d.id, "version": d.version, "sha256": d.weights.sha256},
            "inputs": {
                key: {"size_ijk": list(image.shape[::-1]), "spacing_mm": _rounded(image.grid)}
                for key, image in prepared.raw.items()
            },
            "missing_inputs": [
                key for key, there in prepared.present.items() if not there and not d.one_of
            ],
            "software": {
                "medsegcore": medsegcore.__version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            "time_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }


def _mirrorings(grid: GridSpec) -> list[tuple[int, ...]]:
    """The axes of [B, C, (k,) j, i] to flip: none, each, each pair, all that the model knows."""
    axes = [n for n, axis in enumerate("ji" if grid.flat else "kji", 2) if axis in grid.mirror]
    return [pick for n in range(len(axes) + 1) for pick in itertools.combinations(axes, n)]


def _rounded(grid: Grid) -> list[float]:
    return [round(s, 4) for s in grid.spacing]
