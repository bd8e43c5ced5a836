"""`_` of the application; the text itself where there is no application."""

try:
    from slicer.i18n import tr as _
except ImportError:  # slicer-core comes without the application's Python

    def _(text: str) -> str:
        """The text as it is."""
        return text


__all__ = ["_"]
