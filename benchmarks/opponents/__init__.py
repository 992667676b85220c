"""Published detectors of wrong labels, each built from its paper, on the evidence that our rule gets.

Every module has one function from `Evidence` to `Opinion`. Where a paper needs what a frozen image encoder lacks (a text
encoder, fine-tuning), its docstring says what stands in for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from opponents import deft, early, lemon, nnk, simifeat, wann
from opponents.evidence import Evidence, Opinion

OPPONENTS: Mapping[str, Callable[[Evidence], Opinion]] = {
    "WANN": wann.wann,
    "NNK": nnk.nnk,
    "LEMoN, images alone": lemon.lemon,
    "SimiFeat-V": simifeat.simifeat,
    "DeFT, linear": deft.deft,
    "GCE heads": early.gce,
    "ELR head": early.elr,
}

__all__ = ["OPPONENTS", "Evidence", "Opinion"]
