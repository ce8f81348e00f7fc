"""Self-play and flywheel without a model: scoring, choice, gate, next prompt, caps, draws, store."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfemo.config import Config, GateConfig, GrpoConfig, RewardConfig
from selfemo.errors import StoreError
from selfemo.method.types import (
    LABEL_SETS,
    Completion,
    Conversation,
    Persona,
    Place,
    Prompt,
    RawCompletion,
    Rollout,
    RolloutGroup,
    Utterance,
)
from selfemo.runs.dialogues import dialogues
from selfemo.runs.store import Store
from selfemo.stages.flywheel import (
    PromptQueue,
    add_sample,
    cap_emotions,
    original_prompts,
    select_samples,
    too_old,
)
from selfemo.stages.gate import PASS, gate
from selfemo.stages.rl import RlPlan, mini_batches
from selfemo.stages.selfplay import next_prompt, score_group, select_best, tie_seed
from selfemo.training.protocol import RlItem
from tests.conftest import dist, make_prompt


def sample(text: str, logprob: float = -1.0, finished: bool = True) -> RawCompletion:
    return RawCompletion(text, (1, 2), (logprob, logprob), (0.5, 0.5), finished)


TEXTS = [
    "E: joy 5, surprise 5\nS: joy\nR: Really?",
    "E: joy\nS: joy\nR: Good for you.",
    "E: neutral\nS: fear\nR: I see it too.",
    "E: anger 6, disgust 4\nS: anger\nR: How dare they.",
]


def group(texts: list[str], lam: float = 0.0, **reward) -> RolloutGroup:
    prompt = make_prompt(target=dist(joy=1))
    return score_group(prompt, [sample(t) for t in texts], RewardConfig(**reward), GrpoConfig(), lam)


def test_scores_of_a_worked_group() -> None:
    g = group(TEXTS)
    assert [r.r1 for r in g.rollouts] == pytest.approx([0.5 / 1.5, 1, 0, 0])
    assert [r.r2 for r in g.rollouts] == pytest.approx([1 / 3] * 4)
    assert sum(r.advantage for r in g.rollouts) == pytest.approx(0, abs=1e-6)
    assert [r.r1 for r in group(TEXTS, primary="exact").rollouts] == [1, 1, 0, 0]
    assert [r.r2 for r in group(TEXTS, secondary="weighted").rollouts] == pytest.approx([0.5, 1, 1, 0.6])


def test_a_group_that_does_not_parse_teaches_nothing() -> None:
    g = group(["", "hello", "E: rage\nS: joy\nR: x"])
    assert [(r.r1, r.r2, r.advantage, r.completion) for r in g.rollouts] == [(0, 0, 0, None)] * 3
    assert gate(g.prompt, g.rollouts[select_best(g, 0.5, 0)], GateConfig()) == "unparsed"


def test_no_target_is_refused() -> None:
    prompt = make_prompt()
    bare = Prompt(**{f: getattr(prompt, f) for f in prompt.__dataclass_fields__} | {"target": None})
    with pytest.raises(ValueError, match="has no target"):
        score_group(bare, [sample(TEXTS[0])], RewardConfig(), GrpoConfig(), 0)


def rollout(r1: float, r2: float, logprob: float, text: str = TEXTS[1]) -> Rollout:
    parsed = group([text]).rollouts[0].parsed
    return Rollout(sample(text, logprob), parsed, r1, r2, 0.0)


def test_best_by_combined_then_r1_then_a_draw() -> None:
    p = make_prompt()

    def choose(lam: float, *rs: Rollout, seed: int = 0) -> int:
        return select_best(RolloutGroup(p, rs), lam, seed)

    unparsed = rollout(1, 1, 0, "no format")
    for seed in range(20):
        assert choose(0.0, rollout(0.5, 1, 0), rollout(0.6, 0, -9), seed=seed) == 1
        assert choose(1.0, rollout(0.5, 1, 0), rollout(0.6, 0, -9), seed=seed) == 0
        assert choose(0.5, rollout(0.25, 0.75, 0), rollout(0.75, 0.25, -9), seed=seed) == 1
        assert choose(0.5, unparsed, rollout(0, 0, -9), seed=seed) == 1


def test_a_tie_goes_to_the_dull_reply_no_more_often_than_to_another() -> None:
    """Four equal rollouts, the first the likeliest: each is chosen in about a quarter of 400 rounds."""
    equal = RolloutGroup(make_prompt(), tuple(rollout(0.5, 0.5, lp) for lp in (-0.1, -1, -2, -3)))
    seeds = [tie_seed(7, "iteration-1-rl", step, "c/1") for step in range(400)]
    chosen = [select_best(equal, 0.5, s) for s in seeds]
    counts = Counter(chosen)
    assert len(counts) == 4 and all(70 < n < 130 for n in counts.values())
    assert chosen == [select_best(equal, 0.5, s) for s in seeds], "a resumed round chooses alike"
    assert len({tie_seed(*k) for k in ((0, "a", 1, "p"), (1, "a", 1, "p"), (0, "b", 1, "p"),
                                       (0, "a", 2, "p"), (0, "a", 1, "q"))}) == 5  # fmt: skip


def verdict(reply: str, r1: float = 1.0) -> str:
    completion = Completion(dist(joy=1), dist(joy=1), reply)
    return gate(make_prompt(), Rollout(sample("x"), completion, r1, 0, 0), GateConfig())


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("Then let us look together.", PASS),
        ("It was only the cat, I promise.", "copy"),
        ("it was ONLY the cat... I promise", "copy"),
        ("Ann: was only the cat, I promise", PASS),
        ("...", "empty_reply"),
        ("?", "empty_reply"),
        ("x", "reply_length"),
        ("y" * 601, "reply_length"),
        ("joy", "label_tag"),
        ("Fear.", "label_tag"),
        ("joy: that is great", "label_tag"),
        ("That is great (joy)", "label_tag"),
        ("Joy is all I ask for.", PASS),
        ("<b>Great</b> to see you", "markup"),
        ("*waves* hello there", "markup"),
        ("[laughs] stop it", "markup"),
        ("Great. S: joy", "markup"),
        ("look at https://example.org", "markup"),
        ("I've been here since dawn. I've been here since dawn.", "repetition"),
        ("I'm going to be in the car, I'm going to be in the car. I'm going home.", "repetition"),
        ("No, no, no, I will not open that door for you again tonight.", PASS),
    ],
)
def test_gate(reply: str, expected: str) -> None:
    assert verdict(reply) == expected


def test_gate_wants_the_reward() -> None:
    assert verdict("Then let us look together.", r1=0.49) == "low_reward"
    assert verdict("Then let us look together.", r1=0.5) == PASS


@pytest.mark.parametrize(
    ("target", "named", "r1", "expected"),
    [
        # Worked: sum of min over sum of max.
        ({"joy": 0.6, "surprise": 0.4}, {"joy": 1}, 0.6 / 1.4, PASS),
        ({"joy": 0.6, "surprise": 0.4}, {"surprise": 1}, 0.4 / 1.6, "low_reward"),
        ({"joy": 0.6, "surprise": 0.4}, {"fear": 1}, 0, "low_reward"),
        ({"joy": 0.6, "surprise": 0.4}, {"surprise": 0.6, "joy": 0.4}, 0.8 / 1.2, PASS),
        ({"joy": 0.5, "surprise": 0.5}, {"joy": 1}, 0.5 / 1.5, PASS),
        ({"joy": 0.5, "surprise": 0.5}, {"surprise": 1}, 0.5 / 1.5, "low_reward"),
        # One emotion: R1 >= tau and nothing else.
        ({"joy": 1}, {"joy": 0.6, "fear": 0.4}, 0.6 / 1.4, "low_reward"),
        ({"joy": 1}, {"joy": 0.7, "fear": 0.3}, 0.7 / 1.3, PASS),
    ],
)
def test_a_mixed_target_is_met_by_its_top_emotion(
    target: dict[str, float], named: dict[str, float], r1: float, expected: str
) -> None:
    prompt = make_prompt(target=dist(**target))
    written = ", ".join(f"{e} {w}" for e, w in named.items())
    text = f"E: {written}\nS: joy\nR: Then let us look together."
    (found,) = score_group(prompt, [sample(text)], RewardConfig(), GrpoConfig(), 0).rollouts
    assert found.r1 == pytest.approx(r1)
    assert gate(prompt, found, GateConfig()) == expected


def test_next_prompt_is_eq_7() -> None:
    prompt = make_prompt()
    said = Completion(dist(neutral=1), dist(fear=0.6, anger=0.4), "Cats do not open doors.")
    following = next_prompt(prompt, said, lambda c, s: Persona(s, f"{s} of {c}"), 2, "it2.0")
    assert following.history == (
        *prompt.history,
        Utterance("Ann", "Cats do not open doors.", dist(fear=0.6, anger=0.4)),
    )
    assert (following.answerer, following.interlocutor) == ("Bo", "Ann")
    assert following.persona.description == "Bo of c"
    assert following.target == said.self_emotion
    assert (following.lineage.turn, following.lineage.parent) == (1, prompt.id)
    third = next_prompt(following, said, lambda c, s: Persona(s, ""), 2, "it2.1")
    assert third.answerer == "Ann" and third.lineage.turn == 2
    assert third.lineage.episode == following.lineage.episode == "it2.0:c/1"
    assert len({prompt.id, following.id, third.id}) == 3


@given(
    st.lists(st.tuples(st.sampled_from(["joy", "fear", "anger"]), st.floats(0, 1)), max_size=40),
    st.floats(0.34, 1),
)
def test_no_emotion_exceeds_its_share(items: list[tuple[str, float]], share: float) -> None:
    emotions, rewards = [e for e, _ in items], [r for _, r in items]
    kept = select_samples(emotions, rewards, share)
    left = [e for e, k in zip(emotions, kept, strict=True) if k]
    for e in set(left):
        assert left.count(e) <= max(1, share * len(left)) + 1e-9
    for i, (e, r) in enumerate(items):
        if not kept[i]:
            assert all(rewards[j] >= r for j in range(len(items)) if kept[j] and emotions[j] == e)


def test_share_of_one_keeps_everything() -> None:
    assert select_samples(["joy"] * 5, [0.1] * 5, 1.0) == [True] * 5
    assert sum(select_samples(["joy"] * 5, [0.1] * 5, 0.5)) == 1


def test_original_prompts_hold_no_emotion_over_its_share() -> None:
    """Two data sets, each capped by itself; the seed draws which prompts stay, in their order."""
    labels = LABEL_SETS["meld"]

    def talk(dataset: str, k: int, emotions: str) -> Conversation:
        names = {"n": "neutral", "j": "joy", "a": "anger"}
        turns = tuple(Utterance("AB"[i % 2], f"{i}", dist(**{names[e]: 1})) for i, e in enumerate(emotions))
        return Conversation(f"{dataset}{k}", dataset, "train", turns, labels, "", {})

    talks = [talk("x", k, "nnnnnja") for k in range(10)] + [talk("y", 0, "jjjjjjjjjj")]
    whole = original_prompts(talks, 0, 1.0)
    assert len(whole) == 80

    def capped(seed: int) -> list[Prompt]:
        return original_prompts(talks, seed, 0.5)

    kept = capped(0)
    tops = Counter((p.dataset, p.target.top(labels)) for p in kept)
    # 20 of 40 in the one; in the other, where all are of one emotion, a single one is left.
    assert tops == {("x", "neutral"): 20, ("x", "joy"): 10, ("x", "anger"): 10, ("y", "joy"): 1}
    ids = [p.id for p in whole]
    assert [ids.index(p.id) for p in kept] == sorted(ids.index(p.id) for p in kept)
    assert capped(0) == kept and {p.id for p in capped(1)} != {p.id for p in kept}


def test_rl_plan_counts_optimiser_steps() -> None:
    plan = RlPlan.of(100, 32, 8, whole_rounds=False)
    assert (plan.rounds, plan.steps_per_round, plan.total_steps) == (4, 4, 16)
    assert [plan.size(r) for r in range(4)] == [32, 32, 32, 4]
    assert RlPlan.of(100, 32, 8, whole_rounds=True).rounds == 3


@given(st.integers(0, 20), st.integers(1, 6), st.integers(1, 4), st.integers(0, 1000))
def test_mini_batches_hold_whole_groups_once(n: int, size: int, members: int, seed: int) -> None:
    groups = [[RlItem((g,), (m,), 0.0, f"p{g}") for m in range(members)] for g in range(n)]
    found = mini_batches(groups, size, seed)
    assert [len(b) for b in found[:-1]] == [size * members] * (len(found) - 1)
    assert len(found) == -(-n // size)
    flat = [i for b in found for i in b]
    assert flat == [i for k in range(0, len(flat), members) for i in groups[int(flat[k].prompt[1:])]]
    assert sorted(i.prompt for i in flat) == sorted(i.prompt for g in groups for i in g)
    assert mini_batches(groups, size, seed) == found, "a resumed round has the same"


@given(st.integers(0, 20), st.integers(1, 6), st.integers(1, 5), st.integers(0, 1000))
def test_mini_batches_keep_windows_together(n: int, size: int, window: int, seed: int) -> None:
    """Turns of one conversation that were drawn together are one tree, which a shuffle would cut up."""
    conversations = [f"c{k // 3}" for k in range(n)]
    groups = [[RlItem((k,), (), 0.0, f"p{k}")] for k in range(n)]
    found = mini_batches(groups, size, seed, conversations, window)
    flat = [int(i.prompt[1:]) for b in found for i in b]
    assert sorted(flat) == list(range(n))
    together = [k for k in range(n - 1) if k % 3 != 2 and (k % 3 + 1) % window]
    assert all(flat[flat.index(k) + 1] == k + 1 for k in together)
    assert mini_batches(groups, size, seed, conversations, 1) == mini_batches(groups, size, seed)


def test_self_play_is_spread_over_the_mini_batches_of_a_round() -> None:
    """22 prompts of self-play and 42 originals in two mini-batches: as drawn, the second has no self-play."""
    groups = [[RlItem((), (), 0.0, "synthetic" if g < 22 else "original")] for g in range(64)]
    shares = [
        sum(i.prompt == "synthetic" for i in mini_batches(groups, 32, seed)[0]) / 22 for seed in range(200)
    ]
    assert 0.48 < sum(shares) / len(shares) < 0.52
    assert min(shares) > 0.1 and max(shares) < 0.9


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store.sqlite") as opened:
        yield opened


def test_prompts_survive_the_store(store: Store) -> None:
    prompt = next_prompt(
        make_prompt(), Completion(dist(joy=1), dist(joy=0.1, fear=0.9), "Hm."),
        lambda c, s: Persona(s, "calm", "night"), 1, "t",
    )  # fmt: skip
    with store.transaction():
        store.add_prompts([prompt], Place("stage", 0))
        store.add_prompts([prompt], Place("stage", 1))
    assert store.prompt(prompt.id) == prompt
    with pytest.raises(StoreError, match="no prompt 'nope'"):
        store.prompt("nope")


def test_equal_samples_join_once(store: Store) -> None:
    prompt, completion = make_prompt(), Completion(dist(joy=1), dist(joy=1), "Good.")
    args = {"place": Place("s", 0, 1), "source": "selfplay"}
    store.add_prompts([prompt], Place("s", 0))
    assert add_sample(store, prompt, completion, 1.0, **args)
    shouting = Completion(dist(joy=1), dist(joy=1), "GOOD.")
    assert not add_sample(store, prompt, shouting, 1.0, **args)
    other = Completion(dist(joy=1), dist(joy=1), "Better.")
    assert add_sample(store, prompt, other, 0.5, **args)
    assert cap_emotions(store, 1, 0.5) == {"selfplay_samples": 2, "used": 1, "over_share": 1}
    assert [row["completion"] for row, _ in store.samples()] == ["E: joy\nS: joy\nR: Good."]


def play(store: Store, prompts: list[Prompt], step: int) -> None:
    with store.transaction():
        store.add_prompts(prompts, Place("rl", step))
        for p in prompts:
            g = score_group(p, [sample(t) for t in TEXTS], RewardConfig(), GrpoConfig(), 0)
            store.add_group(g, Place("rl", step, 1), 1, PASS)


def test_draws_mix_synthetic_and_go_once_through_the_originals(store: Store) -> None:
    originals = [make_prompt(f"c{i}/0", dist(joy=1)) for i in range(6)]
    said = Completion(dist(joy=1), dist(joy=1), "Good.")
    child = next_prompt(originals[0], said, lambda c, s: Persona(s, ""), 1, "t")
    queue = PromptQueue(originals, store, 0, 0.5)
    first = queue.draw(4)
    assert PromptQueue(originals, store, 0, 0.5).draw(4) == first, "drawing changes nothing"
    play(store, first, 0)
    store.add_prompts([child], Place("rl", 0))
    second = queue.draw(4)
    assert PromptQueue(originals, store, 0, 0.5).draw(4) == second, "a resumed queue goes on"
    assert second[0] == child and sum(p.lineage.synthetic for p in second) == 1
    seen = [p.id for p in first + second if not p.lineage.synthetic]
    assert len(set(seen[:6])) == 6, "every original once before any twice"
    play(store, second, 1)
    third = queue.draw(4)
    assert not any(p.lineage.synthetic for p in third)
    assert PromptQueue(originals, store, 0, 0.5).draw(4) == third
    store.rewind("rl", 1)
    assert PromptQueue(originals, store, 0, 0.5).draw(4) == second, "rewound rounds are drawn again"


def test_skipped_prompts_do_not_block_the_queue(store: Store) -> None:
    said = Completion(dist(joy=1), dist(joy=1), "Good.")
    children = [
        next_prompt(make_prompt(f"c{i}/0"), said, lambda c, s: Persona(s, ""), 1, "t") for i in range(2)
    ]
    store.add_prompts(children, Place("rl", 0))
    store.skip([children[0].id])
    assert [p.id for p in store.pending()[0]] == [children[1].id]
    assert [p.id for p in PromptQueue([], store, 0, 1.0).draw(5)] == [children[1].id]


def children(store: Store, step: int, n: int, iteration: int = 1) -> list[str]:
    """Add n prompts of self-play that a round made; returns their ids."""
    said = Completion(dist(joy=1), dist(joy=1), "Good.")
    made = [
        next_prompt(
            make_prompt(f"c{i}/0"), said, lambda c, s: Persona(s, ""), iteration, f"{iteration}.{step}"
        )
        for i in range(n)
    ]
    with store.transaction():
        store.add_prompts(made, Place(f"iteration-{iteration}-rl", step, iteration))
    return [p.id for p in made]


def test_the_newest_round_is_drawn_first_in_its_order(store: Store) -> None:
    queue = PromptQueue([], store, 0, 1.0, rounds=9)

    def draw(n: int) -> list[str]:
        return [p.id for p in queue.draw(n)]

    old = children(store, 0, 4)
    assert draw(2) == old[:2]
    new = children(store, 1, 3)
    assert draw(2) == new[:2], "episodes of the last round go on before older ones"
    assert draw(3) == [new[2], *old[2:]]
    assert draw(3) == []
    later = children(store, 0, 1, iteration=2)
    assert draw(3) == later


def test_prompts_past_max_age_are_let_go_and_counted(store: Store) -> None:
    """Made in rounds 0, 1 and 2 of 4; limit 1: in round 3 those of round 2 alone are young enough."""
    queue = PromptQueue([], store, 0, 1.0, max_age=1, rounds=4)
    made = [children(store, step, 2) for step in range(3)]
    assert [p.id for p in PromptQueue([], store, 0, 1.0, max_age=2, rounds=4).draw(9, now=3)] == [
        *made[2], *made[1],
    ]  # fmt: skip
    assert [p.id for p in queue.draw(1, now=3)] == made[2][:1]
    assert [p.id for p in queue.draw(9, now=4)] == [], "round 0 of iteration 2: two rounds later"
    # In iteration 1 (rounds 0 to 3) those of rounds 0 and 1 passed the limit, in iteration 2 those of 2.
    assert too_old(store, range(4), 4, 1) == 4
    assert too_old(store, range(4, 8), 4, 1) == 2
    assert too_old(store, range(8, 12), 4, 1) == 0
    assert too_old(store, range(4), 4, 0) == 0, "no limit"
    play(store, [store.prompt(i) for i in made[0]], 3)
    assert too_old(store, range(4), 4, 1) == 2, "an answered prompt did not pass it"


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=8), st.integers(0, 3))
def test_a_queue_that_is_opened_anew_each_round_draws_the_same(
    rounds: list[tuple[int, int]], max_age: int
) -> None:
    """Rounds of (prompts made, prompts drawn), two iterations; the store is all that a resumed run has."""
    with TemporaryDirectory() as folder, Store(Path(folder) / "store.sqlite") as store:
        size = -(-len(rounds) // 2)
        settings = {"max_age": max_age, "rounds": size}
        queue = PromptQueue([], store, 0, 1.0, **settings)
        seen: set[str] = set()
        for now, (made, n) in enumerate(rounds):
            drawn = queue.draw(n, now=now)
            assert PromptQueue([], store, 0, 1.0, **settings).draw(n, now=now) == drawn
            assert not seen & {p.id for p in drawn} and len(drawn) <= n
            seen |= {p.id for p in drawn}
            play(store, drawn, now)
            children(store, now % size, made, iteration=1 + now // size)


def test_rollouts_keep_rewards_and_failures(store: Store) -> None:
    prompt = make_prompt(target=dist(joy=1))
    texts = [*TEXTS[:2], "E: joy -1\nS: joy\nR: x"]
    g = score_group(prompt, [sample(t) for t in texts], RewardConfig(), GrpoConfig(), 0)
    with store.transaction():
        store.add_prompts([prompt], Place("rl", 0))
        store.add_group(g, Place("rl", 0, 1), 1, PASS)
    rows = store.rows("SELECT * FROM rollouts ORDER BY member")
    assert [r["failure"] for r in rows] == [None, None, "bad_weight"]
    assert [r["best"] for r in rows] == [0, 1, 0] and rows[1]["gate"] == PASS
    assert all(math.isclose(r["mean_logprob"], -1) for r in rows)


def test_a_failed_transaction_leaves_nothing(store: Store) -> None:
    with pytest.raises(RuntimeError), store.transaction():
        store.add_prompts([make_prompt()], Place("s", 0))
        raise RuntimeError
    assert store.rows("SELECT * FROM prompts") == []


def test_a_file_that_is_no_store(tmp_path: Path) -> None:
    bad = tmp_path / "bad.sqlite"
    bad.write_text("not a database, but long enough to be read as one" * 20)
    with pytest.raises(StoreError, match=r"bad\.sqlite: is damaged: file is not a database"):
        Store(bad)


def test_defaults_of_the_plan_are_the_papers() -> None:
    c = Config()
    plan = RlPlan.of(c.flywheel.prompts, c.grpo.prompts_per_step, c.grpo.mini_batch, whole_rounds=False)
    assert (plan.rounds, plan.steps_per_round) == (360, 2)


def test_dialogues_hold_nothing_that_a_terminal_obeys(store: Store) -> None:
    reply = "a\x1b[2Jb\u202ec\x07d\u2066e"
    group = score_group(
        make_prompt("x/1", dist(joy=1)),
        [sample(f"E: joy\nS: joy\nR: {reply}"), sample(f"E: fear\nS: joy\nR: {reply}")],
        RewardConfig(), GrpoConfig(), 0,
    )  # fmt: skip
    with store.transaction():
        store.add_prompts([group.prompt], Place("rl", 0))
        store.add_group(group, Place("rl", 0, 1), 0, PASS)
    (text,) = dialogues(store)
    assert "a\ufffd[2Jb\ufffdc\ufffdd\ufffde" in text and "\n" in text
    assert not any(c in text for c in "\x1b\u202e\x07\u2066")


def test_an_episode_is_what_led_on_not_what_its_prompts_were_answered_later(store: Store) -> None:
    """A long run asks a prompt again: the later answer may not even parse."""
    prompt = make_prompt("x/1", dist(joy=1))
    person = lambda conversation, speaker: Persona(speaker, "Plain.")  # noqa: E731

    def answer(asked: Prompt, step: int, text: str, verdict: str) -> Rollout:
        group = score_group(asked, [sample(text)] * 2, RewardConfig(), GrpoConfig(), 0)
        store.add_group(group, Place("rl", step, 1), 0, verdict)
        return group.rollouts[0]

    with store.transaction():
        store.add_prompts([prompt], Place("rl", 0))
        first = answer(prompt, 0, "E: joy\nS: fear\nR: Who is there?", PASS).parsed
        assert isinstance(first, Completion)
        child = next_prompt(prompt, first, person, 1, "rl/0")
        store.add_prompts([child], Place("rl", 0))
        answer(child, 1, "E: fear\nS: joy\nR: Only the cat.", PASS)
        answer(prompt, 2, "no format at all", "failed")
        answer(child, 2, "no format at all", "failed")
    (text,) = dialogues(store)
    played = [line for line in text.splitlines() if line.startswith(">")]
    assert [line.split("): ")[1] for line in played] == ["Who is there?", "Only the cat."]
