"""Causal credit and two-stage rollouts on a tiny real model: gradient, distribution, and whole runs."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

from selfemo.cli import app
from selfemo.config import GrpoConfig, RewardConfig, SftConfig, load
from selfemo.data import load as load_data
from selfemo.evaluation.summary import finish, rl_rounds
from selfemo.method.prompts import Fitted, conversation_prompts, format_recognition
from selfemo.method.scoring import line_end
from selfemo.method.types import EmotionDistribution, Place, Prompt, RawCompletion, RolloutGroup
from selfemo.models.generation.requests import Request, SamplingSettings
from selfemo.models.packing import shared_prefix
from selfemo.models.policy import Attention
from selfemo.reports.figures import draw
from selfemo.reports.report import build
from selfemo.runs import costs
from selfemo.runs.dialogues import episodes
from selfemo.runs.inputs import turn_of
from selfemo.runs.store import STORE_FILE, Store
from selfemo.stages.completions import complete_best, fit_all, sample_groups
from selfemo.stages.gate import NO_REPLY
from selfemo.stages.selfplay import score_group, select_best, take_turns
from selfemo.training.engine import LocalEngine
from selfemo.training.protocol import RlItem
from tests.conftest import Built, toy_conversations, write_jsonl
from tests.support.engines import assert_same_gradients, engine, gradients, plain_logprobs, rl_items
from tests.support.runs import SHORT, Silent, Watcher, assert_same_run, begun, evolve, photographed, settings

# -- gradient --------------------------------------------------------------------------------------


def parted(items: Sequence[RlItem], share: str | None = None) -> list[RlItem]:
    """Items whose last tokens carry another advantage; the second of each prompt ends with its E line."""
    made = []
    for k, i in enumerate(items):
        head = 2 if k % 4 != 1 else None
        made.append(replace(i, head=head, rest=0.0 if head is None else (k % 3 - 1) * 0.7, share=share))
    return made


def plain_gradient(e: LocalEngine, items: Sequence[RlItem]) -> dict[str, torch.Tensor]:
    """That of eq. 14 on policy, token by token, each item in a row of its own."""
    e.policy.core.zero_grad(set_to_none=True)
    tokens = sum(len(i.completion_ids) for i in items)
    loss = torch.zeros(())
    for i in items:
        head = len(i.completion_ids) if i.head is None else i.head
        weights = [i.advantage if k < head else i.rest for k in range(len(i.completion_ids))]
        loss = loss - (torch.tensor(weights) * plain_logprobs(e.policy.core, i)).sum()
    (loss / tokens).backward()
    return gradients(e.policy.core)


def test_the_gradient_of_parted_items_is_that_of_each_tokens_advantage(
    tiny_model: Path, attention: Attention
) -> None:
    items = parted(rl_items(3, 4))
    e = engine(tiny_model, attention)
    wanted = plain_gradient(e, items)
    undivided = plain_gradient(e, [replace(i, head=None) for i in items])
    with pytest.raises(AssertionError):
        assert_same_gradients(wanted, undivided)
    for micro in (10_000, 80, 1):
        e.policy.core.zero_grad(set_to_none=True)
        e.rl_backward(items, GrpoConfig(kl_coef=0.0, micro_tokens=micro))
        assert_same_gradients(wanted, gradients(e.policy.core), rtol=1e-4)


def test_prompts_of_one_conversation_are_one_tree_with_the_same_gradient(
    tiny_model: Path, attention: Attention
) -> None:
    """Three prompts that go on from each other, each with its completions; one of them is silent."""
    history, items = rl_items(1, 1)[0].prompt_ids, []
    for k, group in enumerate([rl_items(1, 4, seed=s) for s in (1, 2, 3)]):
        prompt = [*history, *range(50, 50 + 8 * k), 7, 8]
        items += [replace(i, prompt_ids=prompt, prompt=f"p{k}") for i in group]
    items = parted(items)
    silent = [replace(i, advantage=0.0, rest=0.0) for i in items[4:8]]
    items = [*items[:4], *silent, *items[8:]]
    e, found, sizes = engine(tiny_model, attention), [], []
    for share in (None, "conversation"):
        e.policy.core.zero_grad(set_to_none=True)
        shared = [replace(i, share=share) for i in items]
        measures = e.rl_backward(shared, GrpoConfig(kl_coef=0.0, micro_tokens=4096))
        found.append(gradients(e.policy.core))
        sizes.append(measures["packed_tokens"])
        assert measures["silent_groups"] == 1 and measures["tokens"] == sum(
            len(i.completion_ids) for i in items
        )
    assert_same_gradients(*found, rtol=1e-4)
    assert_same_gradients(found[1], plain_gradient(e, items), rtol=1e-4)
    # Rows of trees are packed as one tree on the CPU; elsewhere the last prompt gains by sharing.
    assert sizes[1] == sizes[0] - (len(history) if attention == "dense" else 0)


# -- samples of E alone ----------------------------------------------------------------------------


def test_a_sample_of_e_alone_is_its_line_without_an_end(tiny_model: Path) -> None:
    e = engine(tiny_model)
    line = format_recognition(EmotionDistribution({"joy": 0.7, "fear": 0.3}))
    item = e.sft_item([1, 2], line, "c", 5.0)
    assert e.policy.decode(item.completion_ids) == line == "E: joy 7, fear 3\n"
    assert not e.policy.end_ids & set(item.completion_ids)
    heavy = [i for i, w in zip(item.completion_ids, item.weights, strict=True) if w == 5]
    assert e.policy.decode(heavy) == line.rstrip("\n") and item.weights[-1] == 1
    whole = e.sft_item([1, 2], line + "S: joy\nR: Hi.", "c", 5.0)
    n = len(item.completion_ids)
    assert whole.completion_ids[:n] == item.completion_ids and whole.weights[:n] == item.weights
    assert whole.completion_ids[-1] == e.policy.tokenizer.eos_token_id
    assert e.policy.plain_ids(line) == list(item.completion_ids), "the anchor on gold has these tokens too"


# -- whole runs ------------------------------------------------------------------------------------

CAUSAL = (
    *SHORT, "grpo.credit=causal", "grpo.normalise=mean", "flywheel.window=4", "flywheel.new_labels=true",
    "sft.max_samples=16", "sft.label_samples=8", "flywheel.prompts=20", "grpo.prompts_per_step=10",
    "grpo.mini_batch=5", "selfplay.synthetic_share=0.2", "sft.epochs=70",
)  # fmt: skip


@pytest.fixture(scope="module")
def causal(tiny_model: Path, data: Path, built_once: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with causal credit; beside it, what it was at the beginning of each stage."""
    config = settings(tiny_model, data, *CAUSAL)

    def fill(home: Path) -> None:
        run = photographed(home, config)
        finish(run, draw)
        run.close()

    runs = tmp_path_factory.mktemp("causal") / "runs"
    return Path(shutil.copytree(built_once("causal", fill), runs)) / "whole"


@pytest.fixture(scope="module")
def without_replies(
    causal: Path, tiny_model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same cold start; RL with nothing that uses a reply, on gold lines beside the rewards."""
    own = ("flywheel.refit=none", "selfplay.max_turns=1", "grpo.gold_weight=0.5")
    config = settings(tiny_model, data, *CAUSAL, *own)
    folder = begun(causal, "iteration-1-rl", tmp_path_factory.mktemp("bare") / "run", config)
    run = evolve(folder, None, Silent())
    finish(run, draw)
    run.close()
    return folder


def rows(run: Path, query: str) -> list[sqlite3.Row]:
    db = sqlite3.connect(run / STORE_FILE)
    db.row_factory = sqlite3.Row
    found = db.execute(query).fetchall()
    db.close()
    return found


def groups_of(run: Path) -> dict[str, list[sqlite3.Row]]:
    by: dict[str, list[sqlite3.Row]] = defaultdict(list)
    for r in rows(run, "SELECT * FROM rollouts ORDER BY id"):
        by[r["prompt"]].append(r)
    return by


def test_the_best_alone_is_completed(causal: Path) -> None:
    kinds: Counter[str] = Counter()
    for group in groups_of(causal).values():
        assert [r["member"] for r in group] == [0, 1, 2, 3] and sum(r["best"] for r in group) == 1
        for r in group:
            if r["best"]:
                kinds[r["gate"]] += 1
                assert (r["reply"] is None) == (r["self_emotion"] is None)
                if (r["reply"] is None) != (r["failure"] is not None):
                    kinds["not worth a reply"] += 1
                    assert (r["gate"], r["r1"]) == ("low_reward", 0) and r["text"].count("\n") == 1
                continue
            assert r["gate"] is None and r["reply"] is None and r["self_emotion"] is None
            assert (r["emotion"] is None) == (r["failure"] is not None)
            if r["emotion"]:
                assert r["text"].count("\n") == 1 and r["text"].endswith("\n")
                kinds["E alone"] += 1
            else:
                assert r["r1"] == 0
                kinds["failed"] += 1
    assert kinds["pass"] and kinds["E alone"] > 20 and NO_REPLY not in kinds
    assert 0 < kinds.pop("not worth a reply") <= kinds["low_reward"]
    assert sum(kinds.values()) == 20 * 4


def test_where_no_new_label_is_left_rl_draws_those_that_were_taught(tiny_model: Path, tmp_path: Path) -> None:
    data = tmp_path / "few.jsonl"
    real = [c for c in load_data("sample").conversations if c.split == "train"][:4]
    write_jsonl(data, [*real, *toy_conversations(2, "test")])
    all_taught = ("sft.max_samples=0", "sft.label_samples=-1", "sft.epochs=1", "flywheel.refit=none")
    watcher = Watcher()
    evolve(tmp_path / "run", settings(tiny_model, data, *CAUSAL, *all_taught), watcher).close()
    assert sum("SFT samples have taught all" in s and "draws those again" in s for s in watcher.said) == 1
    drawn, taught = (
        {turn_of(r["prompt"]) for r in rows(tmp_path / "run", f"SELECT prompt FROM {table}")}
        for table in ("rollouts", "samples")
    )
    assert drawn & taught


def test_what_passed_is_taught_and_played_on(causal: Path) -> None:
    taught = rows(causal, "SELECT * FROM samples WHERE source = 'selfplay'")
    passed = rows(causal, "SELECT * FROM rollouts WHERE gate = 'pass'")
    assert taught and {s["prompt"] for s in taught} <= {r["prompt"] for r in passed}
    assert all("\nS: " in s["completion"] and "\nR: " in s["completion"] for s in taught)
    following = rows(causal, "SELECT * FROM prompts WHERE parent IS NOT NULL")
    assert following and {p["parent"] for p in following} <= {r["prompt"] for r in passed}
    with Store(causal / STORE_FILE, read_only=True) as store:
        assert episodes(store, 3)[0].played[0].reply


def drawn(run: Path) -> list[list[str]]:
    """Ids of the original prompts of each round, in the order of the store."""
    by: dict[int, list[str]] = defaultdict(list)
    query = "SELECT r.step, r.prompt FROM rollouts r JOIN prompts p ON p.id = r.prompt " \
            "WHERE r.member = 0 AND p.parent IS NULL ORDER BY r.id"  # fmt: skip
    for r in rows(run, query):
        by[r["step"]].append(r["prompt"])
    return list(by.values())


def test_no_turn_whose_label_was_taught_is_drawn(causal: Path) -> None:
    sources = Counter(
        r["source"] for r in rows(causal, "SELECT source FROM samples WHERE stage = 'cold-start'")
    )
    lines = rows(causal, "SELECT completion FROM samples WHERE source = 'label'")
    assert sources["gold"] > 12 and sources["label"] == len(lines) > 4
    assert all(r["completion"].startswith("E: ") and r["completion"].count("\n") == 1 for r in lines)
    taught = {
        turn_of(r["prompt"]) for r in rows(causal, "SELECT prompt FROM samples WHERE source != 'selfplay'")
    }
    asked = {i for round_ in drawn(causal) for i in round_}
    assert len(taught) == len(lines) + sources["gold"] and asked and not asked & taught
    (stage,) = rows(causal, "SELECT info FROM stages WHERE name = 'iteration-1-rl'")
    assert json.loads(stage["info"])["originals_taught"] == len(taught)


def test_turns_of_a_conversation_are_drawn_together(causal: Path) -> None:
    """As many as stand next to each other among the turns that are left, up to four."""
    taught = {
        turn_of(r["prompt"]) for r in rows(causal, "SELECT prompt FROM samples WHERE source != 'selfplay'")
    }
    left = [p.id for c in toy_conversations(10) for p in conversation_prompts(c) if p.id not in taught]
    after = {a: b for a, b in pairwise(left) if a.split("/")[0] == b.split("/")[0]}
    together = torn = 0
    for round_ in drawn(causal):
        for a, b in pairwise(round_):
            together += after.get(a) == b
            torn += a in after and after[a] != b
    assert together >= 6
    # A conversation has five turns: a window of four ends before the fifth, and a draw may end inside one.
    assert torn <= 10 // 4


def test_without_any_use_no_reply_is_sampled(causal: Path, without_replies: Path) -> None:
    found = rows(without_replies, "SELECT * FROM rollouts")
    assert len(found) == 20 * 4
    assert all(r["reply"] is None and r["self_emotion"] is None for r in found)
    assert {r["gate"] for r in found if r["best"]} == {NO_REPLY} and not any(
        r["gate"] for r in found if not r["best"]
    )
    assert rows(without_replies, "SELECT * FROM prompts WHERE parent IS NOT NULL") == []
    assert rows(without_replies, "SELECT * FROM samples WHERE source = 'selfplay'") == []
    # The first round draws the same prompts and the same E lines.
    query = "SELECT prompt, member, best, text, tokens FROM rollouts WHERE step = 0 ORDER BY id"
    for whole, line in zip(rows(causal, query), rows(without_replies, query), strict=True):
        assert tuple(whole)[:3] == tuple(line)[:3]
        assert whole["text"].startswith(line["text"]) and whole["tokens"] >= line["tokens"]
        if not whole["best"]:
            assert tuple(whole) == tuple(line)
    summary = json.loads((without_replies / "summary.json").read_text())
    (rl,) = [s for s in summary["stages"] if s["name"] == "iteration-1-rl"]
    assert rl[NO_REPLY] == 20 and "pass" not in rl


@pytest.mark.parametrize("which", ["causal", "without_replies"])
def test_measures_reports_and_shards_of_e_lines(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    run: Path = request.getfixturevalue(which)
    replies = which == "causal"
    with Store(run / STORE_FILE, read_only=True) as store:
        for m in rl_rounds(store):
            assert m["parse_rate"] > 0.5 and sum(m["emotions"].values()) == pytest.approx(1)
            assert (m["pass_rate"] is not None) == bool(m["self_emotions"]) == replies
        assert [r for r in store.rl_rollouts() if r.emotion]
        assert {f.kind for f in store.failures() if f.place == "self-play"} <= {
            r["failure"] for r in rows(run, "SELECT failure FROM rollouts")
        }
        assert bool(episodes(store)) == replies
    figures = json.loads((run / "summary.json").read_text())["figures"]
    assert "parse_rate" in figures and "reward" in figures
    page, _ = build(run, tmp_path / "report.html")
    said = page.read_text()
    assert ("no_reply_sampled" in said) != replies
    shards, out = tmp_path / "shards", tmp_path / "x.parquet"
    done = CliRunner().invoke(app, ["store", "export", str(run), "--out", str(shards)])
    assert done.exit_code == 0, done.output
    for more in ([], ["--lam", "0.5"]):
        done = CliRunner().invoke(app, ["store", "select", str(shards), "--out", str(out), *more])
        if not replies:
            assert done.exit_code == 1 and "no sample was left" in str(done.exception)
            continue
        assert done.exit_code == 0, done.output
        used = rows(run, "SELECT completion FROM samples WHERE source = 'selfplay'")
        assert {c[0]["content"] for c in pl.read_parquet(out)["completion"]} == {
            r["completion"] for r in used
        }


@pytest.mark.parametrize("n", [1, 2])
def test_an_interrupted_round_resumes_to_the_same_run(causal: Path, tmp_path: Path, n: int) -> None:
    folder, done = begun(causal, "iteration-1-rl", tmp_path / "run"), 0

    def interrupt(stage: str, note: str) -> None:
        nonlocal done
        done += stage == "iteration-1-rl" and note != ""
        if done == n:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evolve(folder, None, Watcher(on_advance=interrupt))
    assert len(rows(folder, "SELECT DISTINCT step FROM rollouts")) in (n, n - 1)
    evolve(folder, None, Silent()).close()
    assert_same_run(folder, causal)


def test_self_play_with_the_settings_of_a_causal_run(causal: Path, data: Path, tmp_path: Path) -> None:
    """On its model, and on scripted answers, whose second part follows the first."""
    (tmp_path / "script.jsonl").write_text(
        "\n".join(
            json.dumps(f"E: {e}\nS: joy\nR: {r}")
            for e, r in [("joy", "We won it, all of us."), ("fear", "Hush now.")]
        )
    )
    settings_of_run = ["--config", str(causal / "config.toml")]
    for model, more in ((str(causal), []), (f"scripted:{tmp_path / 'script.jsonl'}", settings_of_run)):
        out = tmp_path / f"play-{len(more)}"
        command = ["selfplay", model, "--data", str(data), "--prompts", "12", "--out", str(out), *more]
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
        found = rows(out, "SELECT * FROM rollouts")
        assert any(r["gate"] == "pass" and r["reply"] for r in found)
        assert all(r["reply"] is None for r in found if not r["best"])
    assert {r["text"].split("\n")[0] for r in found} == {"E: joy", "E: fear"}
    assert all(r["failure"] is None for r in found)


def test_the_estimate_knows_what_a_run_samples_and_trains_on(causal: Path, tiny_model: Path) -> None:
    """Its tokens against those of the run, with the run's own mean lengths.

    Trees share more than is estimated: equal E lines, and the system message of all prompts of a row.
    """
    config = load([causal / "config.toml"])
    found = rows(causal, "SELECT tokens, best, reply FROM rollouts")
    lines = [r["tokens"] for r in found if not r["best"]]
    whole = [r["tokens"] for r in found if r["reply"]]
    with Store(causal / STORE_FILE, read_only=True) as store:
        asked = [
            store.prompt(r["prompt"]) for r in rows(causal, "SELECT prompt FROM rollouts WHERE member = 0")
        ]
        measured = rl_rounds(store)
    encode = engine(tiny_model).policy.encode
    ids = {p.id: f.ids for p, f in zip(asked, fit_all(asked, encode, 400, "none")[0], strict=True)}
    own = [
        len(ids[b.id]) - shared_prefix(ids[a.id], ids[b.id])
        for a, b in pairwise(sorted(asked, key=lambda p: (p.conversation_id, len(p.history))))
        if a.conversation_id == b.conversation_id
    ]
    lengths = costs.Lengths(
        fmean(map(len, ids.values())), fmean(whole), fmean(own), emotion=fmean(lines), turns=2.6
    )
    machine, shape = costs.MACHINES["cpu-core"], costs.find_shape(str(tiny_model))

    def estimated(*more: str) -> dict[str, float]:
        of = config if not more else load([causal / "config.toml"], list(more))
        return {p.name: p.tokens for p in costs.parts(shape, of, lengths, machine, "local")}

    steps = config.grpo.prompts_per_step // config.grpo.mini_batch
    trained = sum(m["packed_tokens"] for m in measured) * steps
    sampled = sum(r["tokens"] for r in found)
    now, plain = estimated(), estimated("grpo.credit=completion", "flywheel.window=1")
    assert now["decode"] == pytest.approx(sampled, rel=0.1) and plain["decode"] > 1.5 * sampled
    assert trained < now["update"] < 1.6 * trained < 0.6 * plain["update"]


# -- distribution ----------------------------------------------------------------------------------

GROUPS, G = 700, 3


def homogeneous(a: Counter[Any], b: Counter[Any]) -> float:
    """z of the chi-square test that two samples of categories have one distribution; rare ones are pooled."""
    common = [k for k in a.keys() | b.keys() if a[k] + b[k] >= 12]
    table = np.array(
        [[c[k] for k in common] + [sum(c.values()) - sum(c[k] for k in common)] for c in (a, b)], float
    )
    table = table[:, table.sum(0) > 0]
    wanted = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    degrees = table.shape[1] - 1
    assert degrees >= 8, "there is something to tell apart"
    return float((((table - wanted) ** 2 / wanted).sum() - degrees) / (2 * degrees) ** 0.5)


def unsure(tiny_model: Path, prompt_ids: Sequence[int]) -> LocalEngine:
    """A model that writes three E lines, and S lines that depend on them; a neutral S has no reply."""
    e = engine(tiny_model)
    names = ("joy", "fear", "anger")
    texts = [f"E: {a}\nS: {b}\nR: Hi." for a in names for b in (*names, a)]
    texts += [f"E: {a}\nS: neutral" for a in (*names, "joy", "joy")]
    config = SftConfig(lr=3e-3, weight_decay=0.0)
    e.begin_stage(config)
    items = [e.sft_item(prompt_ids, t, "one", 1.0) for t in texts]
    for _ in range(120):
        e.sft_step(items, config, 3e-3)
    return e


def test_what_is_kept_has_the_distribution_of_whole_completions_chosen_by_their_e(tiny_model: Path) -> None:
    """Two stages against one, on a model that is unsure of E and of S: the first two lines of the best.

    The same test tells completions apart that were not chosen, or that were chosen among those that parse.
    """
    base = ["sampling.max_new_tokens=24", "prompt.max_tokens=400", f"sampling.group_size={G}"]
    asked: Prompt = conversation_prompts(toy_conversations(1)[0])[3]
    target = EmotionDistribution({"joy": 0.6, "fear": 0.4})
    prompts = [replace(asked, id=f"c/{k}", target=target) for k in range(GROUPS)]
    (first,), _ = fit_all([prompts[0]], engine(tiny_model).sampler.encode, 400, "none")
    fitted = [Fitted(p, first.ids, 0) for p in prompts]
    sampler = unsure(tiny_model, first.ids).sampler

    def sample(
        prompts: Sequence[Fitted], n: int, seeds: Sequence[int], settings: SamplingSettings
    ) -> list[list[RawCompletion]]:
        asked = zip(prompts, seeds, strict=True)
        return sampler.generate([Request(f.ids, n, s, share="all") for f, s in asked], settings)

    def category(raw: RawCompletion) -> tuple[str, ...]:
        return tuple([*raw.text[:40].split("\n"), "", ""][:2])

    def one_stage() -> tuple[Counter[Any], Counter[Any], Counter[Any]]:
        """The best by E, any one, and the best by E of those that parse as a whole."""
        config, place = load([], [*base, "seed=1"]), Place("one", 0)
        best, any_, parsed = Counter[Any](), Counter[Any](), Counter[Any]()
        for p, group in zip(prompts, sample_groups(sample, fitted, config, place), strict=True):
            heads = [
                replace(s, text=s.text[:end], finished=True) if (end := line_end(s.text)) else s
                for s in group
            ]
            scored = score_group(p, heads, RewardConfig(), GrpoConfig(credit="causal"), 0.0)
            best[category(group[select_best(scored, 0.0, int(p.id[2:]))])] += 1
            any_[category(group[0])] += 1
            whole = score_group(p, group, RewardConfig(), GrpoConfig(), 0.0)
            parsed[category(group[select_best(whole, 0.0, int(p.id[2:]))])] += 1
        return best, any_, parsed

    config, place = load([], [*base, "seed=2", "grpo.credit=causal"]), Place("two", 0)
    groups: list[RolloutGroup] = [
        score_group(p, s, config.reward, config.grpo, 0.0)
        for p, s in zip(prompts, sample_groups(sample, fitted, config, place), strict=True)
    ]
    turns = take_turns(sample, fitted, groups, config, place, 0.0, encode=sampler.encode_text)
    kept = Counter(category(t.group.rollouts[t.best].raw) for t in turns)
    best, any_, parsed = one_stage()
    assert abs(homogeneous(kept, best)) < 3
    assert homogeneous(kept, any_) > 6 and homogeneous(best, parsed) > 6


def test_a_completion_has_its_own_limit_whatever_else_is_completed() -> None:
    """Heads of 4 and 9 tokens and a limit of 12: the first may go on for 8 tokens, the second for 3."""
    config = load([], ["grpo.credit=causal", "sampling.max_new_tokens=12"])

    def group(prompt: Prompt, head: int) -> RolloutGroup:
        lines = [RawCompletion("E: joy\n", tuple(range(head)), (0.0,) * head) for _ in range(2)]
        return score_group(prompt, lines, config.reward, config.grpo, 0.0)

    def sample(
        prompts: Sequence[Fitted], n: int, seeds: Sequence[int], settings: SamplingSettings
    ) -> list[list[RawCompletion]]:
        assert settings.max_new_tokens == 8 and n == 1
        return [[RawCompletion("S: joy\nR: Hi.", tuple(range(5)), (0.0,) * 5)] for _ in prompts]

    prompts = [
        replace(p, target=EmotionDistribution({"joy": 1}))
        for p in conversation_prompts(toy_conversations(1)[0])
    ]
    fitted = [Fitted(p, (1, 2), 0) for p in prompts[:2]]
    groups = [group(prompts[0], 4), group(prompts[1], 9)]
    (short, long), _ = complete_best(sample, fitted, groups, [0, 1], config, Place("x", 0), 0.0, encode=list)
    assert short.rollouts[0].completion is not None and len(short.rollouts[0].raw.token_ids) == 9
    cut = long.rollouts[1]
    assert (
        cut.completion is None
        and not cut.raw.finished
        and len(cut.raw.token_ids) == 12 == len(cut.raw.logprobs)
    )
