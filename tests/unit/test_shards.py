"""Shards of a store: nothing lost, stopped exports go on, damage is seen, selection as the flywheel's."""

from __future__ import annotations

import json
import random
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from unittest.mock import patch

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from selfemo.cli import app
from selfemo.config import GateConfig, GrpoConfig, RewardConfig
from selfemo.errors import StoreError
from selfemo.extras import install_command
from selfemo.method.scoring import with_rest
from selfemo.method.types import LABEL_SETS, Completion, Place, RawCompletion, RolloutGroup, Utterance
from selfemo.progress import Stopped, StopRequest
from selfemo.runs import selection
from selfemo.runs.selection import best_of_groups, select
from selfemo.runs.shards import MANIFEST, export, read_manifest
from selfemo.runs.store import STORE_FILE, Store
from selfemo.seeds import derive
from selfemo.stages.coldstart import read_parquet
from selfemo.stages.flywheel import add_sample, cap_emotions, fingerprint, select_samples, share_level
from selfemo.stages.gate import NO_REPLY, PASS, gate
from selfemo.stages.selfplay import score_group, select_best, tie_seed
from tests.conftest import dist, make_prompt

MELD = LABEL_SETS["meld"].labels
WORDS = ["we", "go", "home", "now", "before", "rain", "comes", "down", "on", "us"]


def completion_text(r: random.Random) -> str:
    """Good, weighted, unparsable or bare, as a policy writes them."""
    a, b = r.sample(MELD, 2)
    emotion = r.choice([a, f"{a} 7, {b} 3", "joy", "fear", "anger", "anger 9, joy 1"])
    reply = r.choice([" ".join(r.sample(WORDS, 5)), "Yes, I do.", "...", "**hm**"])
    return r.choice([f"E: {emotion}\nS: {b}\nR: {reply}"] * 9 + ["I think so."])


def groups(seed: int, n: int) -> list[RolloutGroup]:
    """n scored groups of four: some prompts are drawn twice, some histories are alike."""
    r = random.Random(seed)
    result = []
    for i in range(n):
        k = r.randrange(i) if i and r.random() < 0.2 else i
        said = (Utterance("Ann", f"Hello {k % max(2, n // 2)}."), Utterance("Bo", "Well?", dist(joy=1)))
        target = dist(**{("joy", "joy", "joy", "joy", "fear", "anger")[k % 6]: 1})
        prompt = make_prompt(f"c{k}/1", target, said)
        samples = [
            RawCompletion(completion_text(r), (1, 2), (lp := r.choice([-1.0, -0.5]), lp), (0.5, 0.5))
            for _ in range(4)
        ]
        result.append(score_group(prompt, samples, RewardConfig(), GrpoConfig(), 0.0))
    return result


def make_run(folder: Path, seed: int = 0, n: int = 60, lam: float = 0.3) -> list[RolloutGroup]:
    """A run folder as the flywheel leaves it: groups, SFT samples with the cap, one unanswered prompt."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.toml").write_text("seed = 5\n[gate]\ntau = 0.5\n")
    store, made = Store(folder / STORE_FILE), groups(seed, n)
    with store.transaction():
        first = made[0].prompt
        cold = Completion(dist(joy=1), dist(joy=1), "Yes, I do.")
        add_sample(store, first, cold, 1.0, Place("cold"), "gold")
        store.add_prompts([make_prompt("late/1")], Place("rl", 9))
        for step, g in enumerate(made):
            place = Place("rl", step // 4, 1)
            best = select_best(g, lam, tie_seed(5, "rl", place.step, g.prompt.id))
            verdict = gate(g.prompt, g.rollouts[best], GateConfig())
            store.add_prompts([g.prompt], place)
            store.add_group(g, place, best, verdict)
            if verdict == PASS:
                written = g.rollouts[best].completion
                add_sample(store, g.prompt, written, g.rollouts[best].r1, place, "selfplay")
    cap_emotions(store, 1, 0.4)
    store.close()
    return made


@pytest.fixture
def run(tmp_path: Path) -> Path:
    make_run(tmp_path / "run")
    return tmp_path / "run"


def table(folder: Path, name: str) -> pl.DataFrame:
    return pl.concat([pl.read_parquet(folder / f.name) for f in read_manifest(folder).of(name)])


def stored(run: Path, query: str) -> list[dict]:
    with closing(sqlite3.connect(run / STORE_FILE)) as db:
        db.row_factory = sqlite3.Row
        return [dict(r) for r in db.execute(query)]


# -- export ----------------------------------------------------------------------------------------------


def test_shards_hold_the_store(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    manifest = export(run, out, rows_per_shard=30)
    assert manifest.complete and len(manifest.of("rollouts")) == len(manifest.of("prompts")) == 8
    assert table(out, "rollouts").to_dicts() == stored(run, "SELECT * FROM rollouts ORDER BY id")
    assert table(out, "samples").to_dicts() == stored(run, "SELECT * FROM samples ORDER BY id")
    prompts = pl.concat([table(out, "prompts"), table(out, "unanswered")])
    assert table(out, "unanswered")["id"].to_list() == ["late/1"]
    assert prompts.unique().sort("id").to_dicts() == stored(run, "SELECT * FROM prompts ORDER BY id")
    for pair in zip(manifest.of("rollouts"), manifest.of("prompts"), strict=True):
        rollouts, asked = (pl.read_parquet(out / f.name) for f in pair)
        assert rollouts["member"][0] == 0 and rollouts.height % 4 == 0
        assert sorted(set(rollouts["prompt"])) == sorted(asked["id"])


class StopsAfter(StopRequest):
    def __init__(self, n: int):
        super().__init__()
        self.left = n

    def check(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Stopped


def content(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in folder.iterdir() if f.name != ".lock"}


def test_a_stopped_export_goes_on_and_a_later_one_appends(run: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    export(run, whole, 30)
    with pytest.raises(Stopped):
        export(run, out, 30, stop=StopsAfter(2))
    first = {f.name: (out / f.name).stat().st_mtime_ns for f in read_manifest(out).files}
    assert len(first) == 4 and not read_manifest(out).complete
    with pytest.raises(StoreError, match="was stopped; run it again"):
        select([out], tmp_path / "x.parquet")
    (out / "rollouts-00002.parquet.tmp").write_bytes(b"cut")
    export(run, out, 30)
    assert content(out) == content(whole)
    assert all((out / name).stat().st_mtime_ns == t for name, t in first.items())
    store = Store(run / STORE_FILE)
    with store.transaction():
        store.add_group(groups(0, 1)[0], Place("rl", 99, 2), 0, PASS)
    store.close()
    assert export(run, out, 30).rows()["rollouts"] == 244
    assert table(out, "rollouts").to_dicts() == stored(run, "SELECT * FROM rollouts ORDER BY id")


def test_a_killed_export_goes_on(tmp_path: Path) -> None:
    make_run(tmp_path / "run", n=150)
    out, whole = tmp_path / "out", tmp_path / "whole"
    command = [sys.executable, "-m", "selfemo.cli", "store", "export", str(tmp_path / "run")]
    process = subprocess.Popen(
        [*command, "--out", str(out), "--rows-per-shard", "8"], stderr=subprocess.DEVNULL
    )
    while not (out / "rollouts-00005.parquet").exists():
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert not read_manifest(out).complete
    export(tmp_path / "run", out, 8)
    export(tmp_path / "run", whole, 8)
    assert content(out) == content(whole)


@pytest.mark.parametrize("kind", ["cut", "altered", "deleted"])
def test_damage_is_seen_and_mended(run: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "shards"
    export(run, out, 30)
    before, path = content(out), out / "prompts-00002.parquet"
    data = bytearray(path.read_bytes())
    if kind == "deleted":
        path.unlink()
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data if kind == "altered" else data[:-20])
    with pytest.raises(StoreError, match=r"prompts-00002.parquet: (is missing|was altered or cut)"):
        select([out], tmp_path / "x.parquet")
    assert not (tmp_path / "x.parquet").exists()
    assert not (tmp_path / ".x.parquet-scratch").exists()
    export(run, out, 30)
    assert content(out) == before


def test_a_store_that_changed_is_refused(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "a", 30)
    export(run, tmp_path / "b", 30)
    with closing(sqlite3.connect(run / STORE_FILE)) as db, db:
        db.execute("UPDATE rollouts SET text = 'other' WHERE id = 240")
    with pytest.raises(StoreError, match="other rollouts now"):
        export(run, tmp_path / "a", 30)
    with Store(run / STORE_FILE) as store:
        store.rewind("rl", 3)
    with pytest.raises(StoreError, match="other rollouts now"):
        export(run, tmp_path / "b", 30)


def test_what_is_no_run_and_no_export_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"holds no store.sqlite"):
        export(tmp_path, tmp_path / "out")
    with pytest.raises(StoreError, match=r"has no manifest.json"):
        select([tmp_path], tmp_path / "x.parquet")
    (tmp_path / MANIFEST).write_text('{"format": "selfemo shards", "version": 9}')
    with pytest.raises(StoreError, match="version 9, need 2; export the run again"):
        read_manifest(tmp_path)
    (tmp_path / MANIFEST).write_text("[]")
    with pytest.raises(StoreError, match=r"manifest.json: cannot be read"):
        read_manifest(tmp_path)


def test_without_polars_the_command_says_what_to_install(run: Path, tmp_path: Path) -> None:
    code = "import sys; sys.modules['polars'] = None; from selfemo.cli import run; run()"
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", code, "store", "export", str(run), "--out", str(out)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and install_command("polars") in done.stderr
    assert not out.exists()


# -- selection -------------------------------------------------------------------------------------------


def reference(
    made: list[RolloutGroup], lam: float, share: float, given: set[str], n: int = 0, seed: int = 0
) -> list[dict]:
    """The flywheel's own functions over groups in memory."""
    seen, rows = set(given), []
    for i, g in enumerate(made):
        best = g.rollouts[select_best(g, lam, tie_seed(5, "rl", i // 4, g.prompt.id))]
        if gate(g.prompt, best, GateConfig()) != PASS:
            continue
        digest = fingerprint(g.prompt, best.completion)
        if digest not in seen:
            seen.add(digest)
            emotion = best.completion.emotion.top(g.prompt.label_set)
            rows.append({"fingerprint": digest, "emotion": emotion, "reward": best.r1})
    kept = select_samples([r["emotion"] for r in rows], [r["reward"] for r in rows], share)
    rows = [r for r, k in zip(rows, kept, strict=True) if k]
    drawn = sorted(rows, key=lambda r: derive(seed, "select", r["fingerprint"]))[: n or None]
    return [r for r in rows if r in drawn]


@pytest.mark.parametrize("shard", [7, 30, 1000])
def test_the_recorded_choice_is_the_flywheels_set(run: Path, tmp_path: Path, shard: int) -> None:
    export(run, tmp_path / "shards", shard)
    result = select([tmp_path / "shards"], tmp_path / "x.parquet", max_share=0.4)
    used = stored(run, "SELECT fingerprint, completion, reward FROM samples WHERE used = 1 "
                       "AND source = 'selfplay' ORDER BY id")  # fmt: skip
    got = pl.read_parquet(tmp_path / "x.parquet")
    assert got["fingerprint"].to_list() == [u["fingerprint"] for u in used]
    assert got["reward"].to_list() == [u["reward"] for u in used]
    assert [c[0]["content"] for c in got["completion"]] == [u["completion"] for u in used]
    assert result.selected == len(used) > 5 and result.duplicates and result.over_share
    left_out = result.duplicates + result.over_share + result.not_drawn
    assert result.passed == result.selected + left_out
    assert Counter(got["emotion"]) == result.emotions
    for prompt, completion in read_parquet(tmp_path / "x.parquet"):
        assert fingerprint(prompt, completion) in set(got["fingerprint"])


def test_e_lines_alone_are_no_samples(tmp_path: Path) -> None:
    """Groups of a run with causal credit: one whole rollout each, or none where no reply was sampled."""
    grpo = GrpoConfig(credit="causal")
    lines = [RawCompletion(f"E: {e}\n", (1, 2)) for e in ("joy", "anger", "joy", "fear")]
    (tmp_path / "run").mkdir()
    with Store(tmp_path / "run" / STORE_FILE) as store, store.transaction():
        for k, rest in enumerate(
            ["S: fear\nR: We go home now.", "S: fear", None, "S: joy\nR: It rains on us."]
        ):
            prompt = make_prompt(f"c{k}/1", dist(joy=1), (Utterance("Ann", f"Hello {k}."),))
            group, verdict = score_group(prompt, lines, RewardConfig(), grpo, 0.0), NO_REPLY
            if rest is not None:
                group = with_rest(group, 2, RawCompletion(rest, (3,)), lam=0.0)
                verdict = gate(prompt, group.rollouts[2], GateConfig())
            store.add_prompts([prompt], Place("rl", k))
            store.add_group(group, Place("rl", k, 1), 2, verdict)
    export(tmp_path / "run", tmp_path / "shards")
    for lam in (None, 0.0, 0.5):
        result = select([tmp_path / "shards"], tmp_path / "x.parquet", lam=lam, max_share=1.0)
        assert (result.groups, result.passed, result.selected) == (4, 2, 2)
        got = read_parquet(tmp_path / "x.parquet")
        assert [c.reply for _, c in got] == ["We go home now.", "It rains on us."]


@settings(max_examples=15)
@given(
    seed=st.integers(0, 10**6), n=st.integers(1, 40), shard=st.integers(1, 60),
    lam=st.sampled_from([0.0, 0.3, 0.5, 1.0]), share=st.sampled_from([0.2, 0.34, 0.5, 1.0]),
    drawn=st.sampled_from([0, 1, 4]), at_once=st.sampled_from([2, 100_000]),
)  # fmt: skip
def test_selection_is_that_of_the_functions_in_memory(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    n: int,
    shard: int,
    lam: float,
    share: float,
    drawn: int,
    at_once: int,
) -> None:
    folder = tmp_path_factory.mktemp("s")
    made = make_run(folder / "run", seed, n)
    export(folder / "run", folder / "shards", shard)
    given_ = {
        s["fingerprint"] for s in stored(folder / "run", "SELECT * FROM samples")
        if s["source"] == "gold"
    }  # fmt: skip
    expected = reference(made, lam, share, given_, drawn, seed)
    asked = {"lam": lam, "max_share": share, "n": drawn, "seed": seed}
    out = folder / "x.parquet"
    if not expected:
        with pytest.raises(StoreError, match="no sample was left"):
            select([folder / "shards"], out, **asked)
        return
    with patch.object(selection, "_AT_ONCE", at_once):
        select([folder / "shards"], out, **asked)
    got = pl.read_parquet(out).select("fingerprint", "emotion", "reward")
    assert got.to_dicts() == expected


def test_a_drawn_set_does_not_depend_on_the_shards(run: Path, tmp_path: Path) -> None:
    sets = {}
    for shard, seed in ((7, 0), (1000, 0), (7, 1)):
        folder = tmp_path / f"{shard}-{seed}"
        export(run, folder, shard)
        result = select([folder], folder / ".." / f"{shard}-{seed}-out", n=4, seed=seed)
        assert result.selected == 4 and result.not_drawn
        parts = sorted((tmp_path / f"{shard}-{seed}-out").glob("part-*.parquet"))
        sets[shard, seed] = pl.concat([pl.read_parquet(p) for p in parts])["fingerprint"].to_list()
    assert sets[7, 0] == sets[1000, 0] != sets[7, 1]


def test_shards_of_two_runs_and_one_iteration(run: Path, tmp_path: Path) -> None:
    make_run(tmp_path / "other", seed=5)
    for name in ("run", "other"):
        export(tmp_path / name, tmp_path / f"{name}-shards", 30)
    folders = [tmp_path / f"{n}-shards" for n in ("run", "other")]
    both = select([*folders, *folders], tmp_path / "x.parquet", max_share=1.0)
    each = [select([f], tmp_path / "y.parquet", max_share=1.0) for f in folders]
    assert max(e.selected for e in each) < both.selected <= sum(e.selected for e in each)
    assert both.passed == 2 * sum(e.passed for e in each)
    with pytest.raises(StoreError, match="no sample was left"):
        select(folders, tmp_path / "x.parquet", iterations=[2])


def rollouts_frame(rows: list[tuple[int, int, bool, float, float]]) -> pl.DataFrame:
    names = ("step", "member", "failure", "r1", "r2")
    frame = pl.DataFrame(rows, schema=names, orient="row")
    failure = pl.when("failure").then(pl.lit("empty"))
    said = pl.when(~pl.col("failure")).then(pl.lit("Yes."))
    return frame.with_columns(failure=failure, reply=said, stage=pl.lit("rl"), prompt=pl.lit("c/1"))


@given(
    st.lists(
        st.lists(
            st.tuples(st.booleans(), *[st.sampled_from([0.0, 0.1, 0.3, 0.7, 1 / 3, 1.0])] * 2),
            min_size=1, max_size=5,
        ),
        min_size=1, max_size=6,
    ),
    st.floats(0, 1),
    st.integers(0, 100),
)  # fmt: skip
def test_best_is_select_best(made: list[list[tuple[bool, float, float]]], lam: float, seed: int) -> None:
    from selfemo.method.types import FailureKind, ParseFailure, Rollout

    rows, expected = [], []
    done = Completion(dist(joy=1), dist(joy=1), "Yes.")
    for step, g in enumerate(made):
        members = [
            Rollout(RawCompletion("x"), ParseFailure(FailureKind.EMPTY) if bad else done, a, b, 0)
            for bad, a, b in g
        ]
        tie = tie_seed(seed, "rl", step, "c/1")
        expected.append(select_best(RolloutGroup(make_prompt(), tuple(members)), lam, tie))
        rows += [(step, i, *values) for i, values in enumerate(g)]
    assert best_of_groups(rollouts_frame(rows), lam, seed)["member"].to_list() == expected


# -- shares and thresholds -------------------------------------------------------------------------------


def one_by_one(emotions: list[str], rewards: list[float], share: float) -> list[bool]:
    """The rule as it is told: from the most frequent emotion the worst sample goes until it fits."""
    kept = [True] * len(emotions)
    while share < 1:
        counts = Counter(e for e, k in zip(emotions, kept, strict=True) if k)
        if not counts:
            break
        emotion, most = counts.most_common(1)[0]
        if most <= max(1.0, share * counts.total()):
            break
        mine = [i for i, e in enumerate(emotions) if kept[i] and e == emotion]
        kept[min(mine, key=lambda i: (rewards[i], -i))] = False
    return kept


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([0.0, 0.5, 0.7, 1.0])), max_size=40),
    st.one_of(st.floats(0, 1), st.sampled_from([1 / 3, 0.5, 0.1 + 0.2])),
)
def test_shares_from_counts_alone(items: list[tuple[str, float]], share: float) -> None:
    emotions, rewards = [e for e, _ in items], [r for _, r in items]
    assert select_samples(emotions, rewards, share) == one_by_one(emotions, rewards, share)


def test_levels_worked_by_hand() -> None:
    assert share_level([10, 2, 1], 0.5) == 3  # 3 of 3 + 2 + 1; 4 would be 4 of 7
    assert share_level([10, 2, 1], 0.4) == 2  # 2 of 2 + 2 + 1 is 0.4; 3 would be 3 of 6
    assert share_level([5], 0.5) == 1 and share_level([], 0.5) == 0
    assert share_level([10, 2], 1.0) == 10
    # Two billion-sized classes: found without a loop over samples.
    assert share_level([3_000_000_000, 1_000_000, 500_000], 0.5) == 1_500_000


def test_commands(run: Path, tmp_path: Path) -> None:
    runner, shards, out = CliRunner(), str(tmp_path / "s"), tmp_path / "x.parquet"
    done = runner.invoke(app, ["store", "export", str(run), "--out", shards, "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["rollouts"] == 240
    done = runner.invoke(app, ["store", "select", shards, "--out", str(out), "--max-samples", "5", "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["selected"] == 5
    assert len(read_parquet(out)) == 5
