"""Drawn reports of retrainings: one with every part, and one of many classes."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from flows.gate.gates import Hits
from flows.gate.verdict import Finding, Verdict
from flows.report.changes import changed_products
from flows.report.figures import Figure, confidences, confusions, reliability, tail
from flows.report.label_issues import noisiest
from flows.report.run_report import Report, SampleAnswer
from flows.report.steps import StepAccuracy

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=http://evil.example/x onerror=alert(1)>',
    "x" * 500,
    "\u05e9\u05dc\u05d5\u05dd \u202e milk",
    "$\\frac{1}{2}$ & {{ 7 * 7 }} {% raw %}",
    "日本茶 ☕",
]


def jpeg(seed: int = 0, *, side: int = 96) -> bytes:
    """A photo of noise, which compresses as badly as a photo can."""
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(256, size=(side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def report(*, labels: list[str] = HOSTILE, **changes: Any) -> Report:
    """A report with every part."""
    rng, names = np.random.default_rng(0), [labels[i % len(labels)] for i in range(48)]
    score, decision = rng.random(200).astype(np.float32), np.where(np.arange(200) % 4, "", "dropped").astype(object)
    ranked, target = rng.integers(3, size=(90, 1)), rng.integers(3, size=90)
    issues = [
        {"photo": f"{i:016x}", "given label": name, "suggested label": names[i - 1] if i % 3 else None, "score": i / 100,
         "decision": ("dropped", "doubted", "relabelled", "")[i % 4]}
        for i, name in enumerate(names)
    ]  # fmt: skip
    pairs = [
        row | {"example": f"{i:016x}", "compare": None} for i, row in enumerate(confusions(ranked, target, labels))
    ]
    noisy = [{"product": name, "supplier": name, "photos": 9, "label issues": 3, "share": 1 / 3} for name in labels]
    figures = [
        Figure("Labels of training photos by their score", confidences(score, decision), ("believed",), "labels"),
        Figure("Classifiers", [{"method": "tau", "accuracy": 0.5}]),
        Figure("Test photos taken for another class", pairs, ("photos",), "confusions"),
        Figure("Accuracy by number", tail(ranked, target, np.array([3, 40, 5])), ("accuracy",), "tail"),
        Figure("Right answers", reliability(rng.random(90).astype(np.float32), ranked, target), ("right",), "reliability"),
        Figure("Worst label issues", issues, name="label issues"),
        Figure("Products with the most label issues", noisy, ("share",), "noisy products"),
        Figure("Suppliers with the most label issues", noisy, ("share",), "noisy suppliers"),
        Figure("This run and the last one", [{"measure": "tail", "last run": None, "this run": 0.75}], name="last run"),
        Figure("Products compared", [{"products": "better", "number": 1}], ("number",), "changes"),
        Figure("Products that fell", [{"product": name, "test photos": 4, "before": 0.75, "after": 0.5,
                                       "example": "0" * 16} for name in labels], name="fallen"),
        Figure("Seconds per step", [{"step": "train member 0", "seconds": 4000.0, "reused": False},
                                    {"step": "gate", "seconds": 2.5, "reused": True}], ("seconds",), "cost"),
    ]  # fmt: skip
    findings = (
        Finding("mean_class", False, "mean-class accuracy fell", 0.02, 0.5, 0.625, -0.2, 0.1, ("0" * 16,)),
        Finding("parity", True, "parity: <b>equal</b>", 0),
        Finding("class_floor", False, "another", 0.1, 0.0, products=tuple(labels[:2]), num_products=9),
    )
    made = Report(
        run="20261130-111834-ba5c7b",
        data_before="a" * 32,
        data_after="b" * 32,
        cleaned="b" * 32,
        steps=[
            StepAccuracy("labels as delivered", 0.4, 0.375, 0.5, None, 0.25),
            StepAccuracy("one graph", 0.6, 0.504, 0.7, 0.5, 0.3),
        ],
        evidence=[
            {"step": "cleaning", "member": 1, "before": 0.5, "after": 0.6, "low": -0.01, "interval": [-0.01, 0.2], "stays": True},
            {"step": "balance", "member": 1, "method": "tau", "before": 0.6, "after": 0.5, "low": -0.2, "stays": False},
            {"step": "crops", "member": None, "before": None, "after": None, "low": None, "photos": 0, "stays": True},
        ],
        verdict=Verdict(False, ("mean-class accuracy fell", "another"), "c" * 64, against=2, findings=findings),
        figures=figures,
        seen=[SampleAnswer(f"{i:016x}", name, labels[i - 1], 0.5, 3) for i, name in enumerate(labels)],
        look_at=[{"gate": "mean_class", "photo": "0" * 16, "path": "<i>a</i>.jpg", "given label": labels[0], "split": "test",
                  "decision": "", "score": None}],
    )  # fmt: skip
    return replace(made, **changes)


def large_report(count: int) -> Report:
    """A report of this many classes with three test photos each, whose labels are as long as they may be."""
    rng, names = np.random.default_rng(0), [f"{i:06d}{'ü' * 494}" for i in range(count)]
    target = np.repeat(np.arange(count), 3)
    ranked = np.where(rng.random((len(target), 1)) < 0.7, target[:, None], rng.integers(count, size=(len(target), 1)))
    photo = np.char.mod("%016x", np.arange(len(target))).astype(object)
    hits = [rng.random(len(target)) < share for share in (0.7, 0.8)]
    changed = changed_products(
        Hits(photo, target, hits[0], hits[1], np.array(names, object), target), "model version 1"
    )
    pairs = confusions(ranked, target, names)
    figures = [
        Figure(
            "Pairs",
            [row | {"example": photo[i], "compare": photo[-i]} for i, row in enumerate(pairs)],
            (),
            "confusions",
        ),
        Figure("Noisy", noisiest(target, ~hits[0], names, named="product"), ("share",), "noisy products"),
        Figure("Tail", tail(ranked, target, np.arange(count) + 1), ("accuracy",), "tail"),
        Figure("Steps", [{"step": f"score fold {i}", "seconds": 5.0, "reused": False} for i in range(500)], (), "cost"),
        *changed,
    ]
    told = report(labels=[names[i % count] for i in range(48)])
    return replace(told, figures=[*(each for each in told.figures if each.name == "label issues"), *figures])
