"""The step "expression" of experiments/gpu at tiny size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from experiments.gpu import expressed, expression, study
from experiments.gpu.expression import ARMS, REAL

from selfemo.config.encoders import EncoderConfig
from selfemo.evaluation import expression as counting
from selfemo.evaluation.readers import weight_sums
from selfemo.models.classifiers.reader import TurnReader
from tests.conftest import MELD, Built
from tests.support.encoders import build_encoder
from tests.support.queue import arguments


def kept(folder: Path, base: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    reader = TurnReader.new(EncoderConfig(encoder=str(base), max_tokens=64), [MELD], "cpu")
    reader.shares = [[1 / 7] * 7]
    folder.mkdir()
    reader.save(folder)
    return folder


@pytest.mark.slow
def test_each_arm_is_judged_by_a_reader_that_it_has_not_learned_from(
    tiny_model: Path,
    built_once: Built,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(counting, "LEAST", 1)  # a tiny model writes few replies that parse
    base = built_once("encoder-bert", build_encoder)
    listener, reader = kept(tmp_path / "listener", base, 1), kept(tmp_path / "reader", base, 2)
    settings = ("sft.max_samples=16", "sft.epochs=80", "reward.replies=3", "evaluation.resamples=50")
    # Gold lines soon teach a tiny model to write nothing else.
    settings = (*settings, "grpo.gold_weight=0")
    call = [*arguments(tiny_model, tmp_path, *settings), "--seed", "0"]
    expression.main([*call, "--listener", str(listener), "--reader", str(reader)])
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert "failed" not in result, result.get("failed")
    start, *runs = result["runs"]
    assert [r["arm"] for r in runs] == list(ARMS)
    assert str(tmp_path) not in json.dumps(result), "a result names no folder of the machine"
    (ceiling,) = result[REAL].values()
    assert ceiling["replies"] > 0 and -1 <= ceiling["kappa"][0] <= 1
    claim = sum(h == "claim" for h in result["utterances"]["half"])
    for r in (start, *runs):
        (judged,) = r["judged"].values()
        assert len(r["sampled"]) == claim and judged["replies"] == r["analysis"]["parsed"] > 0
        assert len(r["sampled_given"]) == judged["replies"] == len(r["read"])
        (given,) = r["judged_given"].values()
        assert given["replies"] == len(r["read_given"]) > 0
        for kind in ("talk", "talk_given"):
            (made,) = r[kind].values()
            assert made["words"] >= 1 and 0 <= made["short"] <= 1
    by = {r["arm"]: r for r in runs}
    assert not any("expression" in x for x in by["off"]["rounds"])
    for arm in ARMS:
        if arm == "off":
            continue
        spoken = [x for x in by[arm]["rounds"] if x.get("replies")]
        assert spoken and all(x["replies"] % 3 == 0 for x in spoken)
        assert any(x["expression"] != x["expression_reader"] for x in spoken if "expression_reader" in x)
    assert by["on"]["labels_digest"] == by["off"]["labels_digest"], "the same prompts in the same order"

    # The table counts what the runs counted.
    table = {(kind, arm): rest for _, kind, arm, *rest in expressed.rows([result])}
    assert {arm for _, arm in table} == {"start", *ARMS}
    for r in runs:
        (own,), (n, replies, kappa, more) = r["judged"].values(), table["its own S", r["arm"]]
        assert n == "1" and int(replies) == own["replies"] - own["unread"]
        if "kappa" in own:
            assert float(kappa.split()[0]) == pytest.approx(own["kappa"][0], abs=6e-4)
        assert (more == "-") == (r["arm"] == "off")
    twice = {(kind, arm): rest for _, kind, arm, *rest in expressed.rows([result, result])}
    for key, (n, replies, kappa, more) in table.items():
        assert twice[key][0] == str(2 * int(n)) and int(twice[key][1]) == 2 * int(replies)
        assert twice[key][2:] == [kappa, more], "the same replies twice tell no more"
    other = {**result, "utterances": {**result["utterances"], "half": ["claim"]}}
    with pytest.raises(ValueError, match="other utterances"):
        expressed.rows([result, other])
    capsys.readouterr()
    expressed.main([str(tmp_path / "out" / "results.json")])
    told = capsys.readouterr().out
    assert told.count("| its own S |") == 2 * (len(ARMS) + 1), "what is found, and how replies are made"
    assert "| people |" in told
    assert f"| off to {list(ARMS)[1]} |" in told

    # What was written is read again by another reader, and what it reads is taken over; nothing is made anew.
    other_reader = kept(tmp_path / "other", base, 3)
    for _ in range(2):
        expression.main([*call, "--listener", str(listener), "--reader", str(other_reader)])
        again = json.loads((tmp_path / "out" / "results.json").read_text())
        assert [r["sampled"] for r in again["runs"]] == [r["sampled"] for r in result["runs"]]
        assert all(r["read_by"] == weight_sums(str(other_reader)) for r in again["runs"])
        pairs = list(zip(again["runs"], result["runs"], strict=True))
        assert all(now["read"].keys() == before["read"].keys() for now, before in pairs)
        assert any(now["read"] != before["read"] for now, before in pairs)
        assert again["people"] == result["people"] and again[REAL].keys() == result[REAL].keys()
        assert again[REAL] != result[REAL], "the ceiling is of the reader that judges"
    with pytest.raises(ValueError, match="rewarded by another listener"):
        expression.main([*call, "--listener", str(reader), "--reader", str(other_reader)])

    # A repetition that is stopped before it has a start loses nothing.
    def stopped(self: study.Study) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(study.Study, "cold_start", stopped)
    with pytest.raises(KeyboardInterrupt):
        expression.main([*call, "--listener", str(listener), "--reader", str(reader)])
    again = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [r["run"] for r in again["runs"]] == [r["run"] for r in result["runs"]]


def test_a_mean_is_of_the_runs_that_have_it() -> None:
    """One reply has no self-BLEU."""
    alone = {"words": 4.0, "short": 0.0, "distinct_2": 1.0, "self_bleu": None}
    runs = [
        {"arm": "on", "talk": {"meld": {**alone, "self_bleu": 0.25}}},
        {"arm": "on", "talk": {"meld": alone}},
    ]
    assert expressed.talk_rows([{"runs": runs}]) == [["meld", "its own S", "on", "4.0", "0%", "1.00", "0.25"]]
    assert expressed.talk_rows([{"runs": runs[1:]}])[0][-1] == "-"
