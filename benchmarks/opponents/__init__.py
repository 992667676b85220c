"""Published detectors of wrong labels, each built from its paper, on the evidence that our rule gets.

Every module has one function from `Evidence` to `Opinion`. Where a paper needs what a frozen image encoder lacks (a text
encoder, fine-tuning), its docstring says what stands in for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from opponents.deft import deft
from opponents.early import elr, gce
from opponents.evidence import Evidence, Opinion
from opponents.lemon import lemon
from opponents.nnk import nnk
from opponents.simifeat import simifeat
from opponents.wann import wann

OPPONENTS: Mapping[str, Callable[[Evidence], Opinion]] = {
    "WANN": wann,
    "NNK": nnk,
    "LEMoN, images alone": lemon,
    "SimiFeat-V": simifeat,
    "DeFT, linear": deft,
    "GCE heads": gce,
    "ELR head": elr,
}

__all__ = ["OPPONENTS", "Evidence", "Opinion"]
