"""The demo: a real patient through the shipped model, into a scene and onto one picture."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk

from medsegcore.cli.predict import show_lesions
from medsegcore.evaluation.evaluate import compare_masks, threshold_baseline
from medsegcore.evaluation.metrics import dice as measureDice
from medsegcore.files import write_file
from medsegcore.imaging import Image, read_image
from medsegcore.inference import Predictor, Result, SliceAttention, SpatialAttention
from medsegcore.models import ModelStore

from .Colors import overlayColor
from .EmbeddedCore import EmbeddedCore
from .ResultToScene import ResultNodes, addResultToScene
from .SceneConversion import orientedImage, volumeNodeFromImage
from .SceneViews import SliceView, render3D

MODEL = "ms-lesion-rsanet"
ANSWER_COLOR = (0.95, 0.40, 0.10)
REFERENCE_COLOR = (0.20, 0.75, 0.95)
PIXELS = 620


@dataclass
class _Demo:
    """What the picture is drawn from."""

    core: EmbeddedCore
    result: Result
    reference: Image
    nodes: ResultNodes
    volume: Any
    referenceNode: Any = None


def runDemo(console, sample: Path, out: Path) -> None:
    """Segment the sample case; write masks, attention, `scene.mrb` and `overview.png` to `out`.

    Args:
        console: `medsegcore.cli.console.Console`.
        sample: folder with t1, t2, flair and lesion .nii.gz.
        out: folder to write; a demo that is in it is replaced.
    """
    images = {key: read_image(sample / f"{key}.nii.gz") for key in ("t1", "t2", "flair")}
    reference = read_image(sample / "lesion.nii.gz")
    console.say("Loading the model ...")
    predictor = Predictor(ModelStore().find(MODEL))
    result = predictor.predict(images, progress=console.progress)
    result.save(out, overwrite=True)
    figures = compare_masks(result.labelmap > 0, reference.array > 0, result.grid)
    figures += threshold_baseline(images["flair"], reference.array > 0)
    show_lesions(console, result)
    console.table(
        "Against the reference (consensus of the raters); this patient was not trained on",
        ["measure", "value"],
        [
            [f.name, "not defined" if f.value is None else f"{f.value:.3f} {f.unit}".strip()]
            for f in figures
        ],
    )
    with EmbeddedCore() as core:
        volumes = {
            key: volumeNodeFromImage(image, key.upper(), core.scene)
            for key, image in images.items()
        }
        for key, node in volumes.items():
            _setWindow(node, images[key])
        nodes = addResultToScene(result, core.scene, volumes["flair"], predictor.description.title)
        demo = _Demo(core, result, reference, nodes, volumes["flair"])
        _addReference(demo)
        core.saveScene(out / "scene.mrb")
        dice = measureDice(result.labelmap > 0, reference.array > 0)
        _draw(demo, dice, out / "overview.png")
    console.event("result", folder=str(out), dice=dice, lesions=len(result.lesions))
    console.say(f"Dice against the reference: {dice:.3f}")
    for name in ("overview.png", "scene.mrb", "segmentation.seg.nrrd", "lesions.csv"):
        console.say(f"  {out / name}")


def _setWindow(node, image: Image) -> None:
    """From black air to the brightest tissue, whatever outliers there are."""
    positive = image.array[image.array > 0]
    display = node.GetDisplayNode()
    display.SetAutoWindowLevel(0)
    display.SetWindowLevelMinMax(0, float(np.percentile(positive, 99.8)))


def _addReference(demo: _Demo) -> None:
    """The raters' mask as a segmentation of its own in the same folder."""
    node = demo.core.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Reference (raters)")
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(demo.volume)
    mask = demo.reference.with_array((demo.reference.array > 0).astype(np.uint8))
    node.AddSegmentFromBinaryLabelmapRepresentation(
        orientedImage(mask), "Reference", list(REFERENCE_COLOR), "Reference"
    )
    display = node.GetDisplayNode()
    display.SetVisibility2DFill(0)
    display.SetSliceIntersectionThickness(2)
    demo.nodes.segmentation.GetDisplayNode().SetOpacity2DFill(0.12)
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(demo.core.scene)
    hierarchy.SetItemParent(hierarchy.CreateItem(demo.nodes.folder, node), demo.nodes.folder)
    demo.referenceNode = node


def _fullestSlices(mask: np.ndarray) -> dict[str, int]:
    """Index of the slice with the largest area along each axis of a RAS-like grid [k, j, i]."""
    return {
        name: int(mask.sum(axis=tuple(a for a in range(3) if a != axis)).argmax())
        for name, axis in (("Axial", 0), ("Coronal", 1), ("Sagittal", 2))
    }


def _pictures(demo: _Demo) -> dict[str, np.ndarray]:
    """The rendered views by name."""
    grid = demo.reference.grid
    slices = _fullestSlices(demo.reference.array > 0)
    middle = (np.array(grid.shape[::-1]) - 1) / 2
    height = 1.02 * max(grid.size_mm)
    spatial = [a for a in demo.result.attention if isinstance(a, SpatialAttention)]
    attention = demo.nodes.attention[spatial[-1].key]
    pictures = {}
    for orientation, column in (("Axial", 2), ("Sagittal", 0), ("Coronal", 1)):
        ijk = middle.copy()
        ijk[column] = slices[orientation]
        center = grid.to_ras(ijk)
        with SliceView(demo.core, orientation, (PIXELS, PIXELS)) as view:
            pictures[orientation] = view.show(demo.volume, center, height)
            if orientation == "Axial":
                for node in (demo.nodes.segmentation, demo.referenceNode):
                    node.GetDisplayNode().SetVisibility(0)
                pictures["attention"] = view.show(demo.volume, center, height, attention, 0.75)
                for node in (demo.nodes.segmentation, demo.referenceNode):
                    node.GetDisplayNode().SetVisibility(1)
    demo.referenceNode.GetDisplayNode().SetVisibility(0)
    _addBrain(demo)
    pictures["3D"] = render3D(demo.core, (PIXELS, PIXELS), azimuth=-42, elevation=22)
    return pictures


def _addBrain(demo: _Demo) -> None:
    """The brain's surface around the lesions, so that one sees where they lie."""
    from scipy import ndimage

    grid = demo.reference.grid
    array = slicer.util.arrayFromVolume(demo.volume).astype(np.float32)
    filled = ndimage.binary_fill_holes(array > 0.1 * np.percentile(array[array > 0], 99.5))
    smooth = ndimage.gaussian_filter(filled.astype(np.float32), 1.5)
    data = vtk.vtkImageData()
    data.SetDimensions(*grid.shape[::-1])
    data.GetPointData().SetScalars(numpy_to_vtk(smooth.ravel(), deep=True))
    surface = vtk.vtkFlyingEdges3D()
    surface.SetInputData(data)
    surface.SetValue(0, 0.5)
    place = vtk.vtkTransform()
    place.SetMatrix(slicer.util.vtkMatrixFromArray(grid.affine))
    moved = vtk.vtkTransformPolyDataFilter()
    moved.SetInputConnection(surface.GetOutputPort())
    moved.SetTransform(place)
    normals = vtk.vtkPolyDataNormals()
    normals.SetInputConnection(moved.GetOutputPort())
    normals.Update()
    model = demo.core.scene.AddNewNodeByClass("vtkMRMLModelNode", "Brain surface")
    model.SetAndObservePolyData(normals.GetOutput())
    model.CreateDefaultDisplayNodes()
    model.GetDisplayNode().SetColor(0.80, 0.80, 0.85)
    model.GetDisplayNode().SetOpacity(0.16)
    model.GetDisplayNode().SetScalarVisibility(0)
    model.GetDisplayNode().SetVisibility2D(0)


def _draw(demo: _Demo, dice: float, path: Path) -> None:
    """Compose the picture."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    pictures = _pictures(demo)
    text = {"color": "0.92"}
    figure, axes = plt.subplots(2, 3, figsize=(13.2, 9.3), dpi=110, facecolor="black")
    panels = [
        ("Axial", "Axial"), ("Sagittal", "Sagittal"), ("Coronal", "Coronal"),
        ("attention", "Attention: decoder activation"), (None, None), ("3D", "Lesions in 3D"),
    ]  # fmt: skip
    for axis, (name, title) in zip(axes.ravel(), panels, strict=True):
        axis.set_facecolor("black")
        if name is None:
            continue
        axis.imshow(pictures[name])
        axis.set_title(title, fontsize=12, **text)
        axis.axis("off")
    for column in (0, 2):
        axes[0, column].text(0.02, 0.5, "R", transform=axes[0, column].transAxes, **text)
        axes[0, column].text(0.95, 0.5, "L", transform=axes[0, column].transAxes, **text)
    total = sum(lesion.volume_ml for lesion in demo.result.lesions)
    figure.suptitle(
        f"Multiple sclerosis: {len(demo.result.lesions)} lesions, {total:.1f} ml   "
        f"(Dice {dice:.2f} against the raters' consensus; patient not trained on)",
        fontsize=14, y=0.975, **text,
    )  # fmt: skip
    handles = [
        Line2D([], [], color=ANSWER_COLOR, lw=2.5, label="MedSeg"),
        Line2D([], [], color=REFERENCE_COLOR, lw=2.5, label="reference"),
    ]
    axes[0, 1].legend(
        handles=handles, loc="lower center", ncols=2, frameon=False, labelcolor="0.92", fontsize=11
    )
    _drawMatrix(figure, axes[1, 1], demo)
    figure.subplots_adjust(left=0.015, right=0.985, top=0.92, bottom=0.045, wspace=0.06, hspace=0.1)
    content = io.BytesIO()
    figure.savefig(content, format="png", facecolor="black")
    plt.close(figure)
    write_file(path, content.getvalue())


def _drawMatrix(figure, axis, demo: _Demo) -> None:
    """The axial slice attention as a heat map in mm along the axis."""
    from matplotlib.colors import LinearSegmentedColormap

    attention = next(
        a for a in demo.result.attention if isinstance(a, SliceAttention) and a.axis == "axial"
    )
    place = attention.centers_ras @ attention.normal_ras
    half = (place[1] - place[0]) / 2
    ends = (place[0] - half, place[-1] + half)
    colors = LinearSegmentedColormap.from_list(
        "overlay", [overlayColor(v) for v in np.linspace(0, 1, 64)]
    )
    drawn = axis.imshow(
        attention.matrix, origin="lower", extent=(*ends, *ends), cmap=colors, vmin=0
    )
    axis.set_title("Slice attention, axial: who looks at whom", fontsize=12, color="0.92")
    axis.set_xlabel("slices attended to, S [mm]", color="0.8")
    axis.set_ylabel("slices attending, S [mm]", color="0.8")
    axis.tick_params(colors="0.7")
    axis.set_box_aspect(0.86)
    bar = figure.colorbar(drawn, ax=axis, fraction=0.04, pad=0.03)
    bar.ax.tick_params(colors="0.7")
    bar.set_label("weight (each row sums to 1)", color="0.8")
