"""Whether a confidence means what it says: label probabilities against written weights.

    python -m benchmarks.confidence RUN --data meld:PATH --split dev --conversations 40

Each gold utterance is read twice, once by the probability of each label (`SelfEmo`), once by the weights
that the model writes (`constrained=False`), and both are compared with the gold emotion.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from selfemo.data import load
from selfemo.evaluation.metrics import calibration
from selfemo.method.types import Conversation
from selfemo.serve.answers import Recognition
from selfemo.serve.selfemo import SelfEmo


def measures(conversations: list[Conversation], readings: list[list[Recognition]]) -> dict[str, Any]:
    gold, found, labels = [], [], []
    for c, rs in zip(conversations, readings, strict=True):
        for turn, r in zip(c.turns, rs, strict=True):
            if turn.emotion is not None and r.distribution is not None:
                gold.append(turn.emotion)
                found.append(r)
                labels.append(c.label_set)
    hits = [g.top(s) == r.emotion for g, r, s in zip(gold, found, labels, strict=True)]
    order = sorted(range(len(hits)), key=lambda i: -found[i].confidence)
    half = len(order) // 2
    fit = calibration(
        [dict(r.distribution or {}) for r in found], [dict(g) for g in gold], [s.labels for s in labels]
    )
    return {
        "utterances": len(hits),
        "accuracy": sum(hits) / len(hits),
        "mean_confidence": sum(r.confidence for r in found) / len(found),
        "accuracy_surer_half": sum(hits[i] for i in order[:half]) / half,
        "accuracy_other_half": sum(hits[i] for i in order[half:]) / (len(order) - half),
        **{k: fit[k] for k in ("ece", "brier", "nll")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--data", default="sample")
    parser.add_argument("--split", default="dev")
    parser.add_argument("--conversations", type=int, default=40)
    given = parser.parse_args()
    chosen = [c for c in load(given.data).conversations if c.split == given.split]
    chosen = chosen[: given.conversations]
    result = {}
    for name, constrained in (("probabilities", True), ("written weights", False)):
        model = SelfEmo(given.model, constrained=constrained)
        start = time.process_time()
        readings = model.recognise_many(chosen)
        result[name] = {**measures(chosen, readings), "cpu_s": time.process_time() - start}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
