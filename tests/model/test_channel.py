"""The channel reader on a tiny model: its prompts, and `selfemo analyse --channel`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from selfemo.cli import app
from selfemo.config import PromptConfig
from selfemo.errors import DataError, UnsupportedError
from selfemo.evaluation.channel import READERS, analyse_channel
from selfemo.method.prompts import messages, prompt_at
from selfemo.method.types import Conversation, Utterance
from selfemo.models.generation.local import LocalSampler
from selfemo.models.loading import load_policy
from selfemo.progress import Quiet
from selfemo.stages.channel import read_turns
from tests.conftest import MELD, dist, toy_conversations, write_jsonl

SETS = ["model.device=cpu", "model.dtype=fp32", "prompt.max_tokens=400", "evaluation.resamples=20"]


@pytest.fixture(scope="module")
def sampler(tiny_model: Path) -> LocalSampler:
    return LocalSampler(load_policy(str(tiny_model), "cpu"))


def test_a_turn_is_read_by_two_prompts_of_its_past(sampler: LocalSampler) -> None:
    c = toy_conversations(1)[0]
    found, left_out = read_turns(sampler, [(c, 3), (c, 1)], PromptConfig(max_tokens=400))
    assert [r.turn for r in found] == [3, 1] and not left_out
    heard, before = (sampler.encode(messages(prompt_at(c, k, gold=k == 2))) for k in (3, 2))
    e, of_before = sampler.label_probabilities([("c", heard, "E:"), ("c", before, "E:")], MELD)
    place = ("c", before, f"E: {of_before.top(MELD)}\nS:", c.turns[3].text)
    (scores,) = sampler.channel_scores([place], MELD)
    assert dict(found[0].recognised) == pytest.approx(dict(e), abs=1e-5)
    assert found[0].scores.reply == pytest.approx(scores.reply, abs=1e-4)
    assert found[0].scores.prior == pytest.approx(scores.prior, abs=1e-4)


def test_neither_later_turns_nor_gold_change_what_is_read(sampler: LocalSampler) -> None:
    c = toy_conversations(1)[0]
    bare = tuple(replace(t, emotion=None) for t in c.turns[:3])
    past = replace(c, turns=(*bare, Utterance("Cy", "Unheard of."), Utterance("Bo", "Never.")))
    settings = PromptConfig(max_tokens=400)
    (whole,), (other,) = (read_turns(sampler, [(x, 2)], settings)[0] for x in (c, past))
    assert dict(whole.recognised) == pytest.approx(dict(other.recognised), abs=1e-5)
    assert whole.scores.reply == pytest.approx(other.scores.reply, abs=1e-4)


def test_turns_that_do_not_fit_are_counted(sampler: LocalSampler) -> None:
    long = Utterance("Ann", "word " * 500, dist(joy=1))
    c = Conversation("c", "toy", "dev", (long, Utterance("Bo", "Yes.", dist(joy=1))), MELD)
    found, left_out = read_turns(sampler, [(c, 1)], PromptConfig(max_tokens=400))
    assert not found and left_out == {"too_long": 1}


def test_the_command_writes_what_it_prints(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "channel.json"
    sets = [x for s in SETS for x in ("--set", s)]
    asked = ["analyse", str(tiny_model), "--channel", "--data", str(data), "--split", "test", *sets]
    done = CliRunner().invoke(app, [*asked, "--out", str(out)])
    assert done.exit_code == 0, done.output
    text = " ".join(done.stdout.split())
    assert "self-play c" in text and "turns left out: first turn 3" in text
    assert max(map(len, done.stdout.partition("channel.json")[0].splitlines()[:-1])) <= 80
    written = json.loads(out.read_text())
    (found,) = written["datasets"].values()
    assert list(found["readers"]) == list(READERS) and (found["turns"], found["conversations"]) == (12, 3)
    assert written["left_out"] == {"jsonl": {"first_turn": 3}} and written["split"] == "test"
    again = CliRunner().invoke(app, [*asked, "--json"])
    assert json.loads(again.output.splitlines()[-1]) == written


def test_bad_input(tiny_model: Path, data: Path, tmp_path: Path, expert: Callable[..., str]) -> None:
    alone = tmp_path / "alone.jsonl"
    held = toy_conversations(3, "test")
    write_jsonl(alone, [replace(c, turns=tuple(replace(t, speaker="Ann") for t in c.turns)) for c in held])
    with pytest.raises(DataError, match="0 held-out turns with a gold emotion after a turn of another"):
        analyse_channel(str(tiny_model), [str(alone)], [], SETS, Quiet())
    endpoint = f"mine={expert()},model=m"
    with pytest.raises(UnsupportedError, match="endpoint mine cannot tell the probability"):
        analyse_channel(endpoint, [str(data)], [], SETS, Quiet())
    with pytest.raises(DataError, match=r"do not fit prompt\.max_tokens = 5; raise it"):
        analyse_channel(str(tiny_model), [str(data)], [], [*SETS, "prompt.max_tokens=5"], Quiet())
