"""What the values of a map in the scene are, and how high they can be."""

from medsegcore.inference.attention import BIT, DEVIATION, HIGHEST, SHARE

from .NodeNames import UNIT
from .Translation import _

PROBABILITY = "probability"


def setUnit(node, unit: str) -> None:
    """Note it in the node; the scene's file keeps it."""
    node.SetAttribute(UNIT, unit)


def highestOf(node) -> float:
    """The upper end of a window in which the maps of different cases can be compared."""
    return HIGHEST.get(_unitOf(node), 1.0)


def unitText(node) -> str:
    """What the values are, in words for a legend."""
    return {
        SHARE: _("share of the highest value"),
        DEVIATION: _("standard deviation of the probability"),
        BIT: _("entropy in bit"),
        PROBABILITY: _("probability"),
    }[_unitOf(node)]


def _unitOf(node) -> str:
    """A map that does not tell, e.g. of an older scene, was divided by its highest value."""
    unit = node.GetAttribute(UNIT)
    return unit if unit in (DEVIATION, BIT, PROBABILITY) else SHARE
