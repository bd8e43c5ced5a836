"""From volume nodes to a result in the scene."""

from medsegcore.errors import MissingInputError
from medsegcore.inference.preprocess import check_keys
from medsegcore.models import ModelStore

from .ResultToScene import ResultNodes, addResultToScene, rememberInputs
from .Running import runPredict
from .SceneConversion import imageFromVolumeNode


def segmentNodes(
    scene, model: str, inputNodes: dict, options=None, progress=None, cancelled=None, idle=None,
    python=None,
) -> ResultNodes:  # fmt: skip
    """Run a model on volume nodes where they stand in the world, and add the result.

    The scene is changed after the run has succeeded, and by adding alone.

    Args:
        scene: MRML scene.
        model: id or folder of a model.
        inputNodes: {input key: volume node}; optional inputs may be absent.
        options, progress, cancelled, idle, python: as `runPredict`.

    Raises:
        MedSegError: with a sentence for the user.
    """
    description = ModelStore().find(model).description
    check_keys(description, inputNodes)
    _checkNotTwice(inputNodes)
    images = {key: imageFromVolumeNode(node) for key, node in inputNodes.items()}
    result = runPredict(model, images, options, progress, cancelled, idle, python)
    nodes = addResultToScene(result, scene, inputNodes[description.reference], description.title)
    rememberInputs(
        nodes.segmentation, {key: node for key, node in inputNodes.items() if node is not None}
    )
    return nodes


def _checkNotTwice(inputNodes: dict) -> None:
    seen: dict[str, str] = {}
    for key, node in inputNodes.items():
        if node is None:
            continue
        if node.GetID() in seen:
            raise MissingInputError(
                f"The same volume is chosen for '{seen[node.GetID()]}' and '{key}'.",
                "Choose a different volume for each input.",
            )
        seen[node.GetID()] = key
