"""Persona clusters: masking, naming, clustering of planted groups, rewards by cluster."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from selfemo.cli import app
from selfemo.errors import DataError, StoreError
from selfemo.reports.figures import persona_map
from selfemo.reports.sections import personas
from selfemo.runs import expert_jobs
from selfemo.runs.store import Store
from selfemo.stages.clusters import NOISE, cluster, cluster_store, mask_names, name_clusters


def test_names_are_masked_and_common_words_are_not() -> None:
    names = ["Joy", "Dr. Green", "Al"]
    text = "Joy's joy is loud; Green trusts Al, also Dr. Green's Alibi."
    assert mask_names(text, names) == ("someone joy is loud; someone trusts someone, also someone Alibi.")
    assert mask_names("All is well.", []) == "All is well."


@given(st.text(max_size=40), st.lists(st.text(max_size=8), max_size=4))
def test_masking_takes_any_text_and_leaves_no_capitalised_name(text: str, names: list[str]) -> None:
    masked = mask_names(text, names)
    assert mask_names(masked, names) == masked


def test_clusters_are_named_by_what_sets_them_apart() -> None:
    texts = ["calm patient quiet", "calm patient slow", "loud rude calm", "loud rude angry", "odd"]
    named = name_clusters(texts, [0, 0, 1, 1, NOISE])
    assert set(named) == {0, 1}
    assert "patient" in named[0] and "patient" not in named[1]
    assert set(named[1].split(", ")[:2]) == {"loud", "rude"}


def test_names_are_traits_and_what_several_descriptions_say() -> None:
    texts = [
        "nurse, gentle with everyone, patient, adores ferries", "gentle night nurse, patient, blunt at home",
        "lighthouse keeper, sarcastic, demanding", "sarcastic fencing mistress, demanding, hides tenderness",
        "gentle and noisy, of no cluster",
    ]  # fmt: skip
    named = name_clusters(texts, [0, 0, 1, 1, NOISE])
    # Both say the first two; "blunt" is one's alone; "nurse" is no trait, though both say it.
    assert named[0].split(", ") == ["gentle", "patient", "blunt"]
    assert named[1].split(", ")[:2] == ["demanding", "sarcastic"]
    assert "_" not in "".join(named.values())


def test_a_trait_that_they_lack_is_no_name() -> None:
    texts = [
        "never rude baker, gentle",
        "never rude nurse, not a shy or timid one, gentle",
        "rude",
        "rude, shy",
    ]
    named = name_clusters(texts, [0, 0, 1, 1])
    assert named[0].startswith("gentle") and not {"rude", "shy", "timid"} & set(named[0].split(", "))
    assert named[1].startswith("rude, shy")


def test_what_no_trait_describes_is_named_by_its_words() -> None:
    named = name_clusters(["hums tunes", "hums sea tunes", "paints", "paints boats"], [0, 0, 1, 1])
    assert named[0].startswith("hums, tunes") and named[1].startswith("paints")
    assert name_clusters(["of the", "and so"], [0, 1]) == {0: "cluster 1", 1: "cluster 2"}


def test_equal_clusters_get_different_names() -> None:
    named = name_clusters(["quiet soul"] * 4, [0, 0, 1, 1])
    assert named[0] != named[1]


_KINDS = ("calm and patient", "loud and rude", "shy and nervous")


def planted(each: int) -> tuple[list[str], dict[str, int]]:
    kinds = {f"{k}, number {i}": n for n, k in enumerate(_KINDS) for i in range(each)}
    return list(kinds), kinds


def embed_planted(texts):
    """Points around three corners, by what the text says; what says nothing lies anywhere."""
    rows = []
    for t in texts:
        noise = np.random.default_rng(list(t.encode())).normal(size=8)
        corner = np.zeros(8)
        for n, k in enumerate(_KINDS):
            if t.startswith(k):
                corner[n] = 8
        rows.append(corner + noise * (0.3 if corner.any() else 6))
    found = np.array(rows, dtype=np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_planted_groups_are_found_named_and_drawn(tmp_path: Path) -> None:
    texts, kinds = planted(20)
    result = cluster([*texts, *texts, *(f"stray {i}" for i in range(4))], [], embed_planted, 12)
    assert len(result.clusters) == 3 and len(result.descriptions) == 64  # each counted once
    for c in result.clusters:
        members = [d for d, a in zip(result.descriptions, result.assigned, strict=True) if a == c.number]
        assert len({kinds[d] for d in members if d in kinds}) == 1
        assert c.size == len(members) and c.example in members
        assert set(c.name.split(", ")) & set(_KINDS[kinds[c.example]].split())
    assert sum(c.size for c in result.clusters) + result.noise == 64
    persona_map(tmp_path, result)
    assert {f.name for f in tmp_path.iterdir()} == {
        "persona_map.svg", "persona_map.png", "persona_map.csv", "persona_clusters.csv",
    }  # fmt: skip
    lines = (tmp_path / "persona_clusters.csv").read_text().splitlines()
    assert lines[-1].startswith("(noise),") and len(lines) == 5


def test_a_cluster_that_is_nowhere_on_the_map_is_named(tmp_path: Path) -> None:
    figures = tmp_path / "figures"
    figures.mkdir()
    (figures / "persona_clusters.csv").write_text("cluster,count,example\ncalm,2,a\nloud,1,b\n")
    (figures / "persona_map.csv").write_text("x,y,cluster,description\n0,0,calm,a\n1,0,calm,b\n")
    with pytest.raises(
        StoreError, match=r"cannot be read \(persona_map.csv has no point of cluster 'loud'\)"
    ):
        personas([], tmp_path, tmp_path, tmp_path)


def test_too_few_descriptions_for_clusters(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="too few"):
        cluster(["a", "b"], [], embed_planted)
    with pytest.raises(DataError, match="holds no persona"), Store(tmp_path / "s.sqlite") as store:
        cluster_store(store, embed_planted)


def add_prompt(store: Store, number: int, description: str) -> None:
    store.db.execute(
        "INSERT INTO prompts VALUES (?,'iteration-1-rl',0,1,'',0,NULL,'d','c','[]','Ann',?,'','[]',NULL,0)",
        (f"p{number}", json.dumps(["Ann", description, ""])),
    )


def test_the_command_draws_the_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(tmp_path / "store.sqlite") as store, store.transaction():
        for i, text in enumerate(planted(20)[0]):
            add_prompt(store, i, text)
    monkeypatch.setattr(expert_jobs, "Embedder", lambda name: embed_planted)
    done = CliRunner().invoke(app, ["personas", "cluster", str(tmp_path), "--min-size", "12"])
    assert done.exit_code == 0 and "60 descriptions, 3 clusters, 0 noise" in done.output, done.output
    lines = (tmp_path / "figures" / "persona_clusters.csv").read_text().splitlines()
    assert len(lines) == 5 and (tmp_path / "figures" / "persona_map.png").exists()
    section = personas([], tmp_path, None, tmp_path / "report-figures")
    assert [t.caption for t in section.tables] == ["Clusters (tables 6 and 7)"] and not section.missing
    svg = (tmp_path / "report-figures" / "persona_map.svg").read_text()
    for n, row in enumerate(section.tables[0].rows[:3]):
        assert f">{n + 1}: {row[0]} (20)<" in svg and f">{n + 1}<" in svg, (
            "each cluster is numbered and named"
        )


def test_rewards_by_cluster_are_one_query(tmp_path: Path) -> None:
    store = Store(tmp_path / "s.sqlite")
    texts, _ = planted(20)
    with store.transaction():
        for i, text in enumerate(texts):
            add_prompt(store, i, text)
            for member, r1 in enumerate((0.0, 1.0 if text.startswith("calm") else 0.5)):
                store.db.execute(
                    "INSERT INTO rollouts (stage, step, iteration, prompt, member, text, tokens, r1, r2, "
                    "advantage, mean_logprob, entropy, best) "
                    "VALUES ('iteration-1-rl',0,1,?,?,'',1,?,0,0,0,0,0)",
                    (f"p{i}", member, r1),
                )
    result = cluster_store(store, embed_planted, 12)
    assert len(result.clusters) == 3
    rewards = {r["name"]: (r["rollouts"], r["r1"]) for r in store.reward_by_cluster()}
    (calm,) = [v for k, v in rewards.items() if "calm" in k]
    assert calm == (40, 0.5) and sorted(v[1] for v in rewards.values()) == [0.25, 0.25, 0.5]
