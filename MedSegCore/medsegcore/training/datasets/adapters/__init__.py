"""Adapters: one small file per public data set, which says what its download looks like."""

from medsegcore.training.datasets.adapters.brats import BRATS
from medsegcore.training.datasets.adapters.btcv import BTCV
from medsegcore.training.datasets.adapters.chaos import CHAOS_CT, CHAOS_MR
from medsegcore.training.datasets.adapters.i2cvb import I2CVB
from medsegcore.training.datasets.adapters.isbi2015_ms import ISBI2015_MS
from medsegcore.training.datasets.adapters.layout import Adapter
from medsegcore.training.datasets.adapters.mmwhs import MMWHS
from medsegcore.training.datasets.adapters.mslesseg import MSLESSEG
from medsegcore.training.datasets.adapters.msseg2016 import MSSEG2016
from medsegcore.training.datasets.adapters.nci_isbi2013 import NCI_ISBI2013
from medsegcore.training.datasets.adapters.open_ms import OPEN_MS
from medsegcore.training.datasets.adapters.picai import PICAI
from medsegcore.training.datasets.adapters.promise12 import PROMISE12
from medsegcore.training.datasets.adapters.prostatex import PROSTATEX_LESIONS, PROSTATEX_ZONES
from medsegcore.training.datasets.adapters.samples import SAMPLES
from medsegcore.training.datasets.adapters.six_site import SIX_SITE

_ALL = (
    PROMISE12, NCI_ISBI2013, I2CVB, SIX_SITE, PROSTATEX_ZONES, PROSTATEX_LESIONS, PICAI, MMWHS,
    BTCV, CHAOS_CT, CHAOS_MR, ISBI2015_MS, MSSEG2016, MSLESSEG, OPEN_MS, BRATS, *SAMPLES,
)  # fmt: skip
ADAPTERS: dict[str, Adapter] = {adapter.name: adapter for adapter in _ALL}

__all__ = ["ADAPTERS", "Adapter"]
