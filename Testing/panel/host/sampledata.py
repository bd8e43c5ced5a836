"""Stand-in for Slicer's module SampleData."""

import types


def sampleData():
    """Slicer's module of that name, which slicer-core lacks, as far as modules register there."""
    module = types.ModuleType("SampleData")

    class SampleDataLogic:
        registered: list = []

        @staticmethod
        def registerCustomSampleDataSource(
            category="Custom", sampleName=None, uris=None, fileNames=None, nodeNames=None,
            customDownloader=None, thumbnailFileName=None, loadFileType="VolumeFile",
            loadFiles=None, loadFileProperties=None, checksums=None,
        ):  # fmt: skip
            SampleDataLogic.registered.append((category, sampleName))

    module.SampleDataLogic = SampleDataLogic
    return module
