"""The store's named queries, on a few rows worked out by hand."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from selfemo.errors import DamagedStoreError, StoreError
from selfemo.method.types import (
    LABEL_SETS,
    Completion,
    FailureKind,
    Lineage,
    ParseFailure,
    Place,
    Prompt,
    RawCompletion,
    Rollout,
    RolloutGroup,
)
from selfemo.models.generation.chat import Answer
from selfemo.runs.store import Store
from tests.conftest import dist, make_prompt

EMORY = LABEL_SETS["emorynlp"]
RL = "iteration-1-rl"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store.sqlite") as opened:
        yield opened


def said(reply: str, r1: float) -> Rollout:
    completion = Completion(dist(joy=1), dist(fear=1), reply)
    return Rollout(RawCompletion(reply, (1, 2), (-1.0, -1.0), (0.5, 0.5)), completion, r1, 0.25, 0.0)


def failed(text: str, kind: FailureKind) -> Rollout:
    return Rollout(RawCompletion(text), ParseFailure(kind), 0.0, 0.0, 0.0)


def child_of(prompt: Prompt, name: str, heard: str) -> Prompt:
    turns = (*prompt.history, replace(prompt.history[-1], speaker="Ann", text=heard))
    lineage = Lineage(1, "e", prompt.lineage.turn + 1, prompt.id)
    return replace(prompt, id=name, history=turns, answerer="Bo", lineage=lineage)


def keep(store: Store, place: Place, prompt: Prompt, verdict: str, *rollouts: Rollout) -> None:
    with store.transaction():
        store.add_prompts([prompt], place)
        store.add_group(RolloutGroup(prompt, rollouts), place, 0, verdict)


# -- the file -----------------------------------------------------------


def test_a_store_is_closed_behind_its_block_and_keeps_what_was_committed(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "s.sqlite"
    with pytest.raises(ZeroDivisionError), Store(path) as store:
        with store.transaction():
            store.add_prompts([make_prompt("kept/1")], Place("s"))
        store.add_prompts([make_prompt("lost/1")], Place("s"))
        raise ZeroDivisionError
    with pytest.raises(StoreError, match=r"s\.sqlite: Cannot operate on a closed database"):
        store.stages()
    with Store(path, read_only=True) as again:
        assert again.prompt("kept/1") == make_prompt("kept/1")
        with pytest.raises(StoreError, match=r"s\.sqlite: no prompt 'lost/1'"):
            again.prompt("lost/1")
        with pytest.raises(StoreError, match="readonly database; what was committed before"):
            again.set_stage("s", "done")


def test_files_that_are_no_store_of_this_version(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    with Store(path):
        pass
    db = sqlite3.connect(path)
    db.execute("UPDATE meta SET value = '99' WHERE key = 'schema'")
    db.commit()
    db.close()
    with pytest.raises(StoreError, match="store version 99, need 3"):
        Store(path)
    with pytest.raises(StoreError, match=r"none\.sqlite: cannot be used as a run's store"):
        Store(tmp_path / "none.sqlite", read_only=True)
    path.write_bytes(path.read_bytes()[:4096])
    with pytest.raises(DamagedStoreError, match="is damaged"):
        Store(path)


def test_a_store_of_version_1_is_read_as_it_is_and_brought_up_to_date_where_it_is_written(
    tmp_path: Path,
) -> None:
    path, gold = tmp_path / "s.sqlite", json.dumps({"joy": 1.0})
    with Store(path) as new, new.transaction():
        new.add_predictions([("evaluate-start", "c/1", "toy", "c", gold, gold, None, 1.0, "t", None)])
        before = new.predictions("evaluate-start")
    db = sqlite3.connect(path)
    db.execute("ALTER TABLE predictions DROP COLUMN believed")
    db.execute("DROP TABLE replies")
    db.execute("UPDATE meta SET value = '1' WHERE key = 'schema'")
    db.commit()
    db.close()
    old = path.read_bytes()
    with Store(path, read_only=True) as read:
        assert read.predictions("evaluate-start") == before
    assert path.read_bytes() == old
    with Store(path) as written, written.transaction():
        assert written.predictions("evaluate-start") == before
        written.add_predictions([("evaluate-start", "c/2", "toy", "c", gold, None, None, 0.0, "t", gold)])
    with Store(path, read_only=True) as again:
        assert [r["believed"] for r in again.predictions("evaluate-start")] == [None, gold]
        assert again.columns("predictions")["believed"] == "TEXT"
        assert again.columns("replies")["heard"] == "TEXT"
        assert again.identity("schema") == "3"


def test_copies_hold_what_was_committed(store: Store, tmp_path: Path) -> None:
    store.set_stage("cold-start", "done", checkpoint="cold-start")
    store.backup(tmp_path / "backup.sqlite")
    store.copy_to(tmp_path / "copy.sqlite")
    for name in ("backup", "copy"):
        with Store(tmp_path / f"{name}.sqlite") as other:
            assert other.stages() == store.stages()
    assert not list(tmp_path.glob("backup.sqlite.*"))


def test_a_snapshot_is_of_one_moment(store: Store) -> None:
    with Store(store.path, read_only=True) as reader:
        with reader.snapshot():
            assert reader.rollout_count() == 0
            keep(store, Place(RL), make_prompt("a/1"), "pass", said("Yes.", 1.0))
            assert reader.rollout_count() == 0
        assert reader.rollout_count() == 1


def test_what_a_store_is_of_is_noted_once(store: Store) -> None:
    assert store.identity("evaluation") is None
    store.set_identity("evaluation", "x")
    assert store.identity("evaluation") == "x"
    with pytest.raises(StoreError, match="UNIQUE constraint"):
        store.set_identity("evaluation", "y")


# -- stages -----------------------------------------------------------


def test_stages_in_order_with_the_time_of_all_processes(store: Store) -> None:
    store.set_stage("evaluate-start", "done", info={"toy": 1}, seconds=2)
    store.set_stage("cold-start", "done", checkpoint="cold-start")
    store.set_stage(RL, "running", step=2, seconds=3)
    store.set_stage(RL, "running", step=3, seconds=4)
    assert [s["name"] for s in store.stages()] == ["evaluate-start", "cold-start", RL]
    rl = store.stage(RL)
    assert rl == {
        "name": RL, "status": "running", "step": 3, "checkpoint": None, "info": "{}", "seconds": 7.0,
    }  # fmt: skip
    assert json.loads(store.stages()[0]["info"]) == {"toy": 1}
    assert store.trained_stages() == [("cold-start", "cold-start")]
    assert store.running_stages() == [RL] and store.stage("none") is None
    store.forget(RL)
    assert store.running_stages() == []


def test_metrics_of_a_stage(store: Store) -> None:
    for stage, step, loss in (("a", 0, 1.0), ("b", 0, 5.0), ("a", 1, 0.5)):
        with store.transaction():
            store.add_metrics(Place(stage, step), {"loss": loss})
    assert store.stage_metrics("a") == [
        {"stage": "a", "step": 0, "loss": 1.0}, {"stage": "a", "step": 1, "loss": 0.5},
    ]  # fmt: skip
    store.rewind("a", 1)
    assert [m["loss"] for m in store.metrics()] == [1.0, 5.0]
    store.write_metrics(store.path.with_name("metrics.jsonl"))
    lines = store.path.with_name("metrics.jsonl").read_text().splitlines()
    assert lines[1] == '{"stage": "b", "step": 0, "loss": 5.0}' and len(lines) == 2


# -- prompts -----------------------------------------------------------


def test_label_sets_data_sets_and_personas_of_the_prompts(store: Store) -> None:
    assert store.main_label_set() is None and store.label_sets() == {}
    other = replace(make_prompt("e/1"), dataset="emory", label_set=EMORY)
    with store.transaction():
        store.add_prompts([other, make_prompt("a/1"), make_prompt("b/1")], Place("s"))
    assert store.main_label_set() == LABEL_SETS["meld"]
    assert store.label_sets() == {"emory": EMORY, "toy": LABEL_SETS["meld"]}
    assert store.prompt_personas() == [("Ann", make_prompt().persona.description)]


# -- rollouts -----------------------------------------------------------


def test_verdicts_the_most_frequent_first(store: Store) -> None:
    given = [(RL, "r1"), (RL, "pass"), (RL, "pass"), (RL, "echo"), ("iteration-2-rl", "pass")]
    for k, (stage, verdict) in enumerate(given):
        prompt = make_prompt(f"c{k}/1")
        keep(store, Place(stage, k, 1), prompt, verdict, said("A.", 1.0), said("B.", 0.0))
    assert list(store.verdicts(RL).items()) == [("pass", 2), ("echo", 1), ("r1", 1)]
    assert [tuple(v) for v in store.verdicts_by_stage()] == [
        (RL, "pass", 2), (RL, "echo", 1), (RL, "r1", 1), ("iteration-2-rl", "pass", 1),
    ]  # fmt: skip


def test_failures_with_the_first_text_of_each_kind(store: Store) -> None:
    empty, cut = FailureKind.EMPTY, FailureKind.TRUNCATED
    keep(store, Place("selfplay"), make_prompt("a/1"), "failed", failed("1", cut), failed("2", cut))
    keep(store, Place(RL), make_prompt("b/1"), "failed", failed("", empty), said("Ok.", 1.0))
    gold = json.dumps({"joy": 1.0})
    with store.transaction():
        store.add_predictions(
            ("evaluate-start", p, "toy", "c", gold, None, "truncated", 0.0, f"text of {p}", None)
            for p in ("c/2", "c/1")
        )
    found = {(f.kind, f.place): (f.n, f.example) for f in store.failures()}
    assert found == {
        ("truncated", "self-play"): (2, "1"),
        ("empty", "self-play"): (1, ""),
        ("truncated", "evaluate-start"): (2, "text of c/1"),
    }


def test_rollouts_of_rl_come_with_their_targets(store: Store) -> None:
    first = make_prompt("a/1", dist(joy=1))
    keep(store, Place(RL, 4, 1), first, "pass", said("Yes.", 0.5), failed("x", FailureKind.EMPTY))
    keep(store, Place("selfplay"), make_prompt("b/1"), "pass", said("No.", 0.5))
    child = child_of(first, "a/1>x", "Yes.")
    keep(store, Place(RL, 5, 1), child, "r1", said("So.", 0.0))
    meld = LABEL_SETS["meld"]
    assert [tuple(r) for r in store.rl_rollouts()] == [
        (RL, 4, 1, True, meld, dist(joy=1), dist(joy=1), 0.5),
        (RL, 4, 1, True, meld, dist(joy=1), None, 0.0),
        (RL, 5, 1, False, meld, dist(joy=1), dist(joy=1), 0.0),
    ]
    assert (store.drawn_originals(), store.drawn_synthetic(RL)) == (2, 1)


def test_the_longest_episode_first_and_the_answer_that_led_on(store: Store) -> None:
    short, long = make_prompt("s/1"), make_prompt("l/1")
    keep(store, Place(RL, 0, 1), short, "pass", said("Short.", 1.0))
    keep(store, Place(RL, 0, 1), long, "pass", said("First.", 0.75), said("Not best.", 1.0))
    child = child_of(long, "l/1>x", "Second.")
    keep(store, Place(RL, 1, 1), child, "pass", said("End.", 1.0))
    keep(store, Place(RL, 2, 1), long, "pass", said("Second.", 0.5))
    keep(store, Place(RL, 3, 1), child, "r1", said("Worse.", 0.0))
    # Ids of rollouts in order of insertion: Short 1, First 2, Not best 3, End 4, Second 5, Worse 6.
    assert store.episode_ends() == [("l/1>x", 4), ("s/1", 1)]
    assert store.passed(4) == (dist(joy=1), dist(fear=1), "End.", 1.0)
    assert store.passed_answer("l/1", "Second.").r1 == 0.5
    assert store.passed_answer("l/1", "never said").reply == "First."


# -- samples and predictions -----------------------------------------------------------


def test_samples_of_self_play_and_which_are_used(store: Store) -> None:
    prompt = make_prompt()
    with store.transaction():
        store.add_prompts([prompt], Place("s"))
        for k, (source, reward) in enumerate([("gold", 1.0), ("selfplay", 0.5), ("selfplay", 0.9)]):
            place = Place("cold-start" if source == "gold" else RL, k, int(source != "gold"))
            assert store.add_sample(prompt, f"c{k}", "joy", reward, f"f{k}", place, source)
        assert not store.add_sample(prompt, "c9", "joy", 1.0, "f0", Place(RL), "selfplay")
    assert store.selfplay_samples(1) == [(2, "joy", 0.5), (3, "joy", 0.9)]
    store.mark_used({2: False, 3: True})
    assert [(s["id"], s["completion"], p.id) for s, p in store.samples()] == [
        (1, "c0", "c/1"), (3, "c2", "c/1"),
    ]  # fmt: skip
    assert (store.samples_of_stage(RL), store.samples_of_stage("cold-start")) == (2, 1)


def test_predictions_by_prompt_and_those_of_one_evaluation_kept(store: Store) -> None:
    gold = json.dumps({"joy": 1.0})
    with store.transaction():
        store.add_predictions(
            (name, p, d, "c", gold, gold, None, r1, "t", gold if d == "toy" else None)
            for name, p, d, r1 in (
                ("evaluate-start", "c/2", "toy", 1.0), ("evaluate-start", "c/1", "emory", 0.5),
                ("evaluate-x", "c/3", "toy", 0.0),
            )
        )  # fmt: skip
    store.set_stage("evaluate-start", "done")
    store.set_stage("evaluate-x", "done")
    rows = store.predictions("evaluate-start")
    assert [(r["prompt"], r["dataset"], r["r1"]) for r in rows] == [
        ("c/1", "emory", 0.5), ("c/2", "toy", 1.0),
    ]  # fmt: skip
    assert [r["believed"] for r in rows] == [None, gold]
    assert store.predicted_prompts("evaluate-start") == {"c/1", "c/2"}
    with store.transaction():
        store.add_predictions([("evaluate-y", "c/9", "toy", "c", gold, None, "empty", 0.0, "", None)])
    store.copy_predictions("evaluate-start", "evaluate-y")
    assert store.predictions("evaluate-y") == [{**r, "evaluation": "evaluate-y"} for r in rows]
    assert store.predictions("evaluate-start") == rows
    assert store.predicted_datasets() == ["emory", "toy"]
    store.keep_evaluation("evaluate-x")
    assert store.predicted_datasets() == ["toy"]
    assert [s["name"] for s in store.stages()] == ["evaluate-x"]
    store.rewind("evaluate-x")
    assert store.predictions("evaluate-x") == []


# -- experts -----------------------------------------------------------


def test_answers_and_failures_of_experts(store: Store) -> None:
    store.add_answer("k", Answer("text", 7, 3), "personas", "a#0", "e", "m")
    assert store.answer("k") == Answer("text", 7, 3) and store.answer("other") is None
    store.add_failure("personas", "a#0", "e", "schema", "bad", 1)
    store.add_failure("personas", "a#0", "e", "schema", "bad", 2)
    store.add_failure("coldstart", "b", "e", "no_json", "bad", 5)
    assert store.failed_rounds("personas") == {"a#0": 2}
    store.clear_failure("personas", "a#0")
    assert store.failed_rounds("personas") == {} and store.failed_rounds("coldstart") == {"b": 5}


def test_personas_profiles_and_clusters(store: Store) -> None:
    def record(segment: str, speaker: str, text: str) -> tuple[object, ...]:
        return (segment, speaker, "", "toy", "c", "train", 3, text, "s", "e", "m", 1, 9, 9)

    with store.transaction():
        store.add_personas([record("b#0", "Ann", "calm"), record("a#0", "Bo", "loud")])
    assert store.persona_count() == 2
    assert store.personas() == [("toy", "", "Bo", "loud"), ("toy", "", "Ann", "calm")]
    store.set_profiles([("toy", "", "Zed", "old", "single", 1)])
    profiles = [("toy", "x", "Ann", "calm", "single", 1), ("toy", "", "Bo", "loud", "central", 2)]
    store.set_profiles(profiles)
    assert store.profiles() == [("toy", "", "Bo", "loud"), ("toy", "x", "Ann", "calm")]
    description = make_prompt().persona.description
    clusters = [(description, 0, "talks_fast", 0.5, 1.0), ("calm", -1, "", 0.0, 0.0)]
    store.set_clusters(clusters)
    assert store.clusters() == clusters
    keep(store, Place(RL, 0, 1), make_prompt("a/1"), "pass", said("A.", 1.0), said("B.", 0.0))
    assert store.reward_by_cluster() == [{"name": "talks_fast", "stage": RL, "rollouts": 2, "r1": 0.5}]


# -- streams of rows -----------------------------------------------------------


def test_tables_as_streams_of_rows(store: Store) -> None:
    with store.transaction():
        store.add_prompts([make_prompt("late/1")], Place("s"))
    for k in range(3):
        keep(store, Place(RL, k, 1), make_prompt(f"c{k}/1"), "pass", said(f"{k}", 1.0))
    columns = store.columns("rollouts")
    assert list(columns)[:2] == ["id", "stage"] and columns["r1"] == "REAL"
    place = list(columns).index("prompt")
    assert [r[place] for r in store.rollout_rows(after=1)] == ["c1/1", "c2/1"]
    assert store.rollout_count() == 3 and store.rollout_count(up_to=2) == 2
    row = store.rollout_row(3)
    assert row is not None and row[place] == "c2/1" and store.rollout_row(4) is None
    assert [r[0] for r in store.prompt_rows(["c2/1", "c0/1"])] == ["c2/1", "c0/1"]
    with pytest.raises(StoreError, match="rollouts of prompt 'gone/1', which is not in it"):
        store.prompt_rows(["c0/1", "gone/1"])
    assert [r[0] for r in store.unanswered_rows()] == ["late/1"]
    assert list(store.sample_rows()) == []
