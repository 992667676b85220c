"""Seconds of torch's operators in a module: `python -m scaling.profiled OUT.json MODULE ARGUMENTS...` runs it and notes them."""

from __future__ import annotations

import json
import runpy
import sys
import time
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

REST = "all else: Python, reading, decoding"


def main() -> None:
    """Runs the module as `python -m` does."""
    out = Path(sys.argv[1])
    del sys.argv[:2]
    began = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    seconds = time.perf_counter() - began
    operators = {each.key: each.self_cpu_time_total / 1e6 for each in seen.key_averages()}
    out.write_text(json.dumps(operators | {REST: seconds - sum(operators.values())}), encoding="utf-8")


if __name__ == "__main__":
    main()
