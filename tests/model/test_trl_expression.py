"""R3 in TRL (SPEC section 10): what the tokens of replies carry, by hand and against the local engine."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest

from selfemo.config import GateConfig, GrpoConfig, ModelConfig, PromptConfig, RewardConfig
from selfemo.errors import ConfigError, EngineError
from selfemo.method.expression import information_gain, reply_advantages
from selfemo.method.lengths import length_gain, lengths_of
from selfemo.method.parsing import reply_line
from selfemo.method.prompts import messages
from selfemo.method.replies import names_label, reply_fault
from selfemo.method.types import LABEL_SETS, Completion, LabelSet, RawCompletion
from selfemo.models.reply_readers import open_reply_reader
from selfemo.training.protocol import RlItem
from tests.conftest import MELD, Built, dist, make_prompt, toy_conversations
from tests.support.encoders import build_encoder, kept
from tests.support.readers import EVEN, Known

pytest.importorskip("trl")
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # rollout_func gives the completions

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from selfemo.training.engine import LocalEngine
from selfemo.training.expression import Reply
from selfemo.training.trl import Row, SelfGRPOConfig, SelfGRPOTrainer, expression_function, prompt_dataset
from selfemo.training.trl_rows import gain_measures, reply_gains
from selfemo.training.whole_replies import prompt_of
from tests.model import trl_job
from tests.model.trl_job import PROMPTS, REPLIES, TEXTS, causal_items, forced, trainer_for

UP = math.log(0.99 + 0.01 / 7) - math.log(1 / 7)
"""R3 of a reply that shows S for certain, to a listener that expected nothing."""
JOYS = [p for p in PROMPTS.values() if p.target == dist(joy=1)]
OWN = LabelSet("own:up,down", ("up", "down"))


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


def saying(*texts: str, cut: tuple[int, ...] = ()) -> Any:
    """A rollout function that gives these completions to each prompt in turn, some of them without end."""

    def rollout(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        t = trainer.processing_class
        chats = t.apply_chat_template(prompts, add_generation_prompt=True, tokenize=True, return_dict=True)
        ids = [
            [*t(texts[k], add_special_tokens=False).input_ids, *[t.eos_token_id] * (k not in cut)]
            for k in (i % len(texts) for i in range(len(prompts)))
        ]
        return {"prompt_ids": chats["input_ids"], "completion_ids": ids, "logprobs": None}

    return rollout


def spans(ids: list[int], tokenizer: Any) -> tuple[int, int]:
    """Tokens up to the end of the first line, and of the second one."""
    ends = [n for n in range(1, len(ids) + 1) if tokenizer.decode(ids[:n]).endswith("\n")]
    return ends[0], ends[1]


# -- rows --------------------------------------------------------------------------------------------


def test_a_row_tells_a_reader_what_its_prompt_shows(tokenizer: Any) -> None:
    """So that it reads behind the very prompt that the policy answers, the shortened one too."""
    size = max(
        len(tokenizer.apply_chat_template(messages(p), add_generation_prompt=True).input_ids)
        for p in PROMPTS.values()
    )
    rows = prompt_dataset(toy_conversations(), tokenizer, max_prompt_tokens=size - 12)
    shorter = 0
    for row in rows:
        prompt, whole = prompt_of(row), PROMPTS[row["prompt_id"]]
        assert messages(prompt) == row["prompt"] and prompt.target is None
        assert prompt.label_set is MELD and prompt.answerer == whole.answerer
        assert all(u.emotion is None for u in prompt.history)
        shorter += len(prompt.history) < len(whole.history)
    assert 0 < shorter < len(rows)


def test_the_label_set_of_a_row_is_the_known_one_of_its_labels(tokenizer: Any) -> None:
    (row,) = prompt_dataset([make_prompt()], tokenizer)
    assert prompt_of(row).label_set is MELD
    assert prompt_of({**row, "label_set": "own:x"}).label_set == LabelSet("own:x", MELD.labels)
    assert prompt_of({**row, "labels": list(OWN)}).label_set == LabelSet("meld", OWN.labels), "other labels"
    unscored = LABEL_SETS["dailydialog"]
    daily = prompt_of({**row, "label_set": unscored.name, "labels": list(unscored)}).label_set
    assert daily.unscored == "no emotion"
    with pytest.raises(ConfigError, match="column 'labels': label set 'meld' needs two or more"):
        prompt_of({**row, "labels": ["joy"]})


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("E: joy\nS: joy\nR: Fine.", "R: Fine."),
        ("E: joy\nS: joy\n R : Fine.\nTwo.", " R : Fine.\nTwo."),
        ("E: joy\nS: joy\nR:\nFine.", "R:\nFine."),
        ("E: joy\nS: joy", ""),
    ],
)
def test_where_the_line_of_a_reply_starts(text: str, line: str) -> None:
    assert text[reply_line(text) :] == line


# -- the tokens of a trainer -------------------------------------------------------------------------

FOUR = (
    "E: joy\nS: joy\nR: Great!",
    "E: joy\nS: joy\nR: Hm, well.",
    "E: joy\nS: joy\nR: So much joy!",  # names a label: counts as one nat below the worst other
    "E: joy\nS: joy\nR: Great! Oh",  # cut: what breaks behind E is charged as without R3
)
SHOWS = {"Great!": dist(joy=1), "Hm, well.": EVEN}


def four(model: Path, out: Path, tokenizer: Any, **more: Any) -> Any:
    return trainer_for(
        model,
        out,
        rollout_func=saying(*FOUR, cut=(3,)),
        reply_reader=Known(SHOWS),
        train_dataset=prompt_dataset(JOYS, tokenizer),
        **{**REPLIES, "max_steps": 1, **more},
    )


@pytest.mark.parametrize("contrast", [False, True])
def test_advantages_by_token_worked_by_hand(
    tiny_model: Path, tmp_path: Path, tokenizer: Any, contrast: bool
) -> None:
    """What the listener learns of S by those that parse: log .99.. - log 1/7 and 0, or, as a contrast, 6/7 of
    what it learns of S more than of the six others; the one that names its emotion counts as -1. Each less
    their mean, at most 3. All E are right, so that they carry nothing; the one that breaks is charged
    1 / std(1, 1, 1, 0) = 4 / sqrt 3."""
    trainer = four(tiny_model, tmp_path, tokenizer, expression_weight=0.5, contrast=contrast)
    trainer.train()
    (batch,) = trainer.batches
    first = 6 / 7 * math.log(7 * 0.99 / 0.01 + 1) if contrast else UP
    said = [0.5 * min(3.0, gain - (first - 1) / 3) for gain in (first, 0, -1)]
    counted = 0
    for i, ids in enumerate(batch["completion_ids"]):
        head, lead = spans(ids, tokenizer)
        found, counts = batch["advantages"][i][: len(ids)], batch["counts"][i]
        if i % 4 < 3:
            assert found == pytest.approx([0.0] * lead + [said[i % 4]] * (len(ids) - lead), abs=1e-5)
            assert counts == [1] * head + [0] * (lead - head) + [1] * (len(ids) - lead)
        else:
            assert found == pytest.approx([0] * head + [-4 / math.sqrt(3)] * (len(ids) - head), abs=1e-5)
            assert counts == [1] * len(ids)
        counted += sum(counts)
    assert batch["items"] == counted
    (logged, last) = trainer.state.log_history
    assert math.isfinite(last["train_loss"])
    assert logged["expression"] == pytest.approx(UP / 2)
    assert logged["expression_spread"] == pytest.approx(UP / 2), "of the two that earn"
    assert logged["expression_refused"] == pytest.approx(1 / 3)
    assert logged["expressed"] == 0.5, "nothing is most heard in what is even, and the first is neutral"
    assert logged["silent_groups"] == 0


def test_lengths_of_people_are_those_of_the_prompts(tiny_model: Path, tmp_path: Path, tokenizer: Any) -> None:
    """Two groups say the same: one reply that shows S, one that shows nothing, one that earns nothing."""
    trainer = four(tiny_model, tmp_path, tokenizer, contrast=False, length_weight=0.5)
    assert trainer._people == lengths_of(p.history[-1].text for p in JOYS)
    people = trainer._people = lengths_of(["Oh, no."] * 3)  # as if they said more than "Great!"
    trainer.train()
    (batch,) = trainer.batches
    texts = [FOUR[i].split("R: ")[1] for i in (0, 1)]
    worth = [
        g + 0.5 * length_gain(t, people, lengths_of(texts)) for g, t in zip((UP, 0.0), texts, strict=True)
    ]
    assert worth[0] - worth[1] != pytest.approx(UP), "their lengths differ"
    worth.append(min(0.0, *worth) - 1)
    for i, ids in enumerate(batch["completion_ids"][:4]):
        if i < 3:
            *_, last = batch["advantages"][i][: len(ids)]
            assert last == pytest.approx(min(3.0, worth[i] - sum(worth) / 3), abs=1e-5)


def test_the_replies_of_an_evaluation_are_measured(tiny_model: Path, tmp_path: Path, tokenizer: Any) -> None:
    """Four of a group, where an evaluation has its own number; nobody trains on it."""
    trainer = four(
        tiny_model, tmp_path, tokenizer, eval_dataset=prompt_dataset(JOYS[:2], tokenizer),
        num_generations_eval=2,
    )  # fmt: skip
    trainer.evaluate()
    (found,) = trainer.state.log_history
    assert found["eval_expression"] == pytest.approx(UP / 2)


def test_replies_without_weight_are_measured_alone(tiny_model: Path, tmp_path: Path, tokenizer: Any) -> None:
    trainer = four(tiny_model, tmp_path, tokenizer, expression_weight=0.0)
    trainer.train()
    (batch,) = trainer.batches
    for i, ids in enumerate(batch["completion_ids"]):
        head, _ = spans(ids, tokenizer)
        assert sum(batch["counts"][i]) == (head if i % 4 < 3 else len(ids))
    assert trainer.state.log_history[0]["expression"] == pytest.approx(UP / 2)


def heard(text: str, r3: float | None, fault: str = "") -> Row:
    said = None if fault == "unparsed" else PARSED
    reply = Reply(RawCompletion(text), said, fault or ("" if r3 is not None else "unread"), r3)
    return Row("a", "a", MELD.labels, (1.0, *[0.0] * 6), RawCompletion(text), reply=reply, lead=9)


PARSED = trl_job.score_group(
    JOYS[0], [RawCompletion("E: joy\nS: joy\nR: Hm.")], RewardConfig(), GrpoConfig(), 0.0
).rollouts[0].completion  # fmt: skip


def test_groups_are_compared_by_themselves() -> None:
    """Two groups of one prompt; what does not parse has no part in them."""
    rows = [heard("a", r3) for r3 in (1.0, 3.0)] + [heard("b", None, "unparsed"), heard("c", 2.0)]
    rows += [heard("d", -1.0), heard("e", None), heard("f", 1.0), heard("g", 1.0)]
    gains = reply_gains(rows, 4, RewardConfig(contrast=False, expression_weight=2.0))
    assert [g and g.advantage for g in gains] == pytest.approx([-2, 2, None, 0, -8 / 3, 0, 4 / 3, 4 / 3])
    assert all(g is None or g.lead == 9 for g in gains)
    found = gain_measures(rows, 4)
    assert found["expression_refused"] == 0, "one could not be read, which breaks no rule"
    assert found["expression"] == pytest.approx(7 / 6)
    nothing = gain_measures([heard("b", None, "unparsed")] * 4, 4)
    assert nothing == {}, "a measure that nothing has is not logged"


def completed(reply: str) -> Completion:
    text = RawCompletion(f"E: joy\nS: joy\nR: {reply}")
    found = trl_job.score_group(JOYS[0], [text], RewardConfig(), GrpoConfig(), 0.0).rollouts[0].completion
    assert found is not None
    return found


def test_length_joins_what_replies_earn() -> None:
    """Two prompts; the replies of each stand beside those of the other."""
    texts = [["Hm.", "I have no idea."], ["Hm.", "Hm."]]
    rows = [
        Row(
            p,
            p,
            MELD.labels,
            (1.0, *[0.0] * 6),
            RawCompletion(t),
            reply=Reply(RawCompletion(t), completed(t), gain=1.0),
        )
        for p, own in zip("ab", texts, strict=True)
        for t in own
    ]
    people = lengths_of(["I have seen it.", "You have no idea.", "Hm."])
    without = reply_gains(rows, 2, RewardConfig(contrast=False), people)
    assert [g and g.advantage for g in without] == [0, 0, 0, 0], "it has no weight"
    gains = reply_gains(
        rows, 2, RewardConfig(expression="listener", contrast=False, length_weight=0.5), people
    )
    other = lengths_of(["Hm.", "Hm."])
    short, long = (length_gain(t, people, other) for t in texts[0])
    assert long > short
    assert [g and g.advantage for g in gains] == pytest.approx([(short - long) / 4, (long - short) / 4, 0, 0])
    beside = lengths_of(texts[0])
    found = gain_measures(rows, 2, people)
    assert found["reply_length_gain"] == pytest.approx(
        (short + long) / 4 + length_gain("Hm.", people, beside) / 2
    )
    assert "reply_length_gain" not in gain_measures(rows, 2), "nothing is known of people"


def replies_by_hand(batch: dict[str, Any], tokenizer: Any, model: Path, weight: float) -> dict[int, float]:
    """The advantage of the reply of each completion that parses, each read alone."""
    listener = open_reply_reader(str(model), ModelConfig(device="cpu", dtype="fp32"), PromptConfig())
    gains: dict[int, float] = {}
    for start in range(0, len(batch["prompt_id"]), 4):
        prompt, earned = PROMPTS[batch["prompt_id"][start]], dict[int, float | None]()
        for i in range(start, start + 4):
            ids = batch["completion_ids"][i]
            fields = dict(f.split(": ", 1) for f in tokenizer.decode(ids[:-1]).split("\n") if ": " in f)
            if ids[-1] != tokenizer.eos_token_id or list(fields) != ["E", "S", "R"] or "bliss" in fields["E"]:
                continue
            reply, (s, *more) = fields["R"], fields["S"].split(", ")
            assert not more, "each S of the texts is one emotion"
            earned[i] = None
            if not reply_fault(prompt, reply, GateConfig()) and not names_label(reply, MELD):
                (q,), (before,) = listener.read([(prompt, reply)]), listener.expect([prompt])
                assert q is not None and before is not None
                told = {e: information_gain(dist(**{e: 1}), q, before, MELD) for e in MELD.labels}
                earned[i] = told[s] - sum(told.values()) / 7
        found = reply_advantages(list(earned.values()))
        gains |= dict(zip(earned, (weight * a for a in found), strict=True))
    return gains


SPOKEN = (
    *(t for t in TEXTS if "S: neutral" in t or "S: joy" in t or "\n" not in t),
    "E: fear\nS: surprise\nR: Who is it?",
    "E: anger\nS: joy\nR: I will.",
    "E: joy\nS: neutral",  # these break behind E
    "E: anger\nS: neutral",
)
"""Such that the tiny model, whose weights are random, tells replies apart: R3 is about -.004 to .004."""


def test_the_step_with_replies_is_the_local_engines(
    tiny_model: Path, tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference listens: advantages of each token, the tokens that count, and the step of SGD."""
    monkeypatch.setattr(trl_job, "TEXTS", SPOKEN)
    before = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    more = {"normalise": "mean", "gradient_accumulation_steps": 2, "expression_weight": 200.0}
    trainer = trainer_for(tiny_model, tmp_path, **{**REPLIES, **more, "max_steps": 2})
    trainer.lambda_callback.at = lambda step, total: 0.5  # type: ignore[method-assign]
    trainer.args.max_steps = 1
    trainer.train()
    (batch,) = trainer.batches
    grpo = GrpoConfig(credit="causal", normalise="mean", kl_coef=0.0)
    items, rollouts = causal_items(batch, tokenizer, grpo, 0.5)
    gains = replies_by_hand(batch, tokenizer, tiny_model, 200.0)
    assert sum(abs(g) > 0.05 for g in gains.values()) > 5, f"replies that the listener tells apart: {gains}"
    assert any(r.rest for r in rollouts), "a completion that breaks behind E is among them"
    spoken = []
    for i, (item, ids) in enumerate(zip(items, batch["completion_ids"], strict=True)):
        wanted = [*item.advantages(), *[0.0] * (len(ids) - len(item.completion_ids))]
        counts = [1] * len(item.completion_ids) + [0] * (len(ids) - len(item.completion_ids))
        if i in gains:
            _, lead = spans(ids, tokenizer)
            wanted[lead:] = [gains[i]] * (len(ids) - lead)
            counts[lead:] = [1] * (len(ids) - lead)
            head = (*item.prompt_ids, *ids[:lead])
            spoken.append(RlItem(head, tuple(ids[lead:]), gains[i], item.prompt, item.share))
        assert batch["advantages"][i][: len(ids)] == pytest.approx(wanted, abs=3e-4)
        assert batch["counts"][i] == counts
    engine = LocalEngine(ModelConfig(id=str(tiny_model), device="cpu", dtype="fp32"))
    engine.rl_backward(sorted([*items, *spoken], key=lambda i: i.prompt), grpo)
    ours = dict(engine.policy.core.named_parameters())
    moved = 0
    for (name, old), new in zip(before.named_parameters(), trainer.model.parameters(), strict=True):
        step = (old - new.detach()) / 1e-2
        assert torch.allclose(step, ours[name].grad, atol=3e-5), name
        moved += bool(step.abs().max() > 1e-4)
    assert moved > 10


@pytest.fixture(scope="session")
def base(built_once: Built) -> Path:
    return built_once("encoder-bert", build_encoder)


def test_a_kept_encoder_listens(tiny_model: Path, tmp_path: Path, base: Path, tokenizer: Any) -> None:
    settings = {**REPLIES, "listener": str(kept(tmp_path / "kept", base)), "max_steps": 1}
    trainer = trainer_for(tiny_model, tmp_path / "out", **settings)
    trainer.train()
    (logged, last) = trainer.state.log_history
    assert logged["expression_spread"] > 0 and math.isfinite(last["train_loss"])
    other = str(kept(tmp_path / "other", base, LABEL_SETS["emorynlp"]))
    with pytest.raises(EngineError, match="it was trained on those of emorynlp; for both train one"):
        trainer_for(tiny_model, tmp_path / "out", **{**settings, "listener": other})


# -- without the subclass ----------------------------------------------------------------------------


def columns_of(rows: Any, n: int) -> dict[str, Any]:
    """The columns of the first row, for n completions."""
    return {name: [rows[0][name]] * n for name in rows.column_names if name != "prompt"}


def test_r3_as_a_reward_function(tokenizer: Any) -> None:
    rows = prompt_dataset(JOYS, tokenizer)
    listener = Known({**SHOWS, "No!": dist(anger=1)})
    score, logged = expression_function(listener), dict[str, float]()
    texts = ["E: joy\nS: joy\nR: Great!", "E: fear\nS: joy\nR: Great!", FOUR[1], FOUR[2], "What?"]
    chat = [[{"role": "assistant", "content": t}] for t in texts]
    found = score(prompts=None, completions=chat, log_metric=logged.__setitem__, **columns_of(rows, 5))
    assert found == pytest.approx([UP, UP, 0, -1, -1])
    assert listener.asked == 2, "equal replies are read once, others never"
    assert logged == pytest.approx({"expression": 2 * UP / 3, "expression_refused": 1 / 4})
    # One that shows another emotion is better than one that breaks the rules.
    worse = [*texts, "E: joy\nS: joy\nR: No!"]
    assert score(completions=worse, **columns_of(rows, 6)) == pytest.approx([UP, UP, 0, -4, -4, -3])
    ids = [[*tokenizer(t, add_special_tokens=False).input_ids, tokenizer.eos_token_id] for t in texts]
    ids[0].pop()
    strict = expression_function(listener, tokenizer)
    assert strict(completions=texts, completion_ids=ids, **columns_of(rows, 5)) == pytest.approx(
        [-1, UP, 0, -1, -1]
    ), "the first was cut"
    short = expression_function(listener, gate=GateConfig(max_reply_chars=6))
    assert short(completions=texts[1:3], **columns_of(rows, 2)) == pytest.approx([UP, -1])
    quiet = dict[str, float]()
    assert score(completions=["What?"], log_metric=quiet.__setitem__, **columns_of(rows, 1)) == [-1]
    assert quiet == {}
    older = {k: v for k, v in columns_of(rows, 5).items() if k not in ("history", "persona")}
    with pytest.raises(ConfigError, match=r"no column history, persona; make it with .*prompt_dataset"):
        score(completions=texts, **older)


def test_a_plain_trainer_with_r3(tiny_model: Path, tmp_path: Path, tokenizer: Any) -> None:
    """By a reference: a model that listens to what itself says."""
    trainer = GRPOTrainer(
        str(tiny_model),
        reward_funcs=expression_function(str(tiny_model)),
        args=GRPOConfig(
            str(tmp_path), max_steps=1, num_generations=4, per_device_train_batch_size=16,
            max_completion_length=40, logging_steps=1, save_strategy="no", use_cpu=True, bf16=False,
            report_to="none",
        ),
        train_dataset=prompt_dataset(toy_conversations(), tokenizer),
        rollout_func=forced,
    )  # fmt: skip
    trainer.train()
    (logged, last) = trainer.state.log_history
    assert logged["rewards/expression_reward/std"] > 0 and math.isfinite(last["train_loss"])
    assert -3 <= logged["expression"] <= 3 and 0 <= logged["expression_refused"] < 1


# -- mistakes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"expression": "listener"}, "credit='completion': expression='listener' acts on the tokens of repl"),
        ({"expression": "loud", "credit": "causal"}, "expression"),
        ({"listener": "a/b"}, "nobody would listen"),
        ({**REPLIES, "expression_weight": -1.0}, "expression_weight"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        SelfGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, **settings)


def test_trainers_that_cannot_be(tiny_model: Path, tmp_path: Path, tokenizer: Any) -> None:
    rows = prompt_dataset(toy_conversations(1), tokenizer)
    older = rows.remove_columns(["history", "answerer", "persona", "scenario"])
    config = SelfGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, **REPLIES)
    with pytest.raises(ConfigError, match="train_dataset has no column history, answerer, persona, scenario"):
        SelfGRPOTrainer(str(tiny_model), config, older)
    with pytest.raises(ConfigError, match=r"eval_dataset\['dev'\] has no column scenario; make it with"):
        SelfGRPOTrainer(str(tiny_model), config, rows, {"dev": rows.remove_columns("scenario")})
    plain = SelfGRPOConfig(str(tmp_path), use_cpu=True, bf16=False)
    with pytest.raises(ConfigError, match="reply_reader: nobody would listen"):
        SelfGRPOTrainer(str(tiny_model), plain, rows, reply_reader=Known({}))
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    with pytest.raises(ConfigError, match="a LlamaForCausalLM has no folder or id"):
        SelfGRPOTrainer(model, config, rows)
    reasons = prompt_dataset(toy_conversations(1), tokenizer, reasoning="brief")
    with pytest.raises(ConfigError, match="the rows have the model reason first"):
        SelfGRPOTrainer(str(tiny_model), config, reasons)
    nobody = SelfGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, **REPLIES, listener=str(tmp_path))
    with pytest.raises(EngineError, match="is not a model folder"):
        SelfGRPOTrainer(str(tiny_model), nobody, rows)


def test_an_older_data_set_trains_without_r3(tiny_model: Path, tmp_path: Path, tokenizer: Any) -> None:
    rows = prompt_dataset(toy_conversations(), tokenizer)
    older = rows.remove_columns(["history", "answerer", "persona", "scenario"])
    trainer = trainer_for(tiny_model, tmp_path, train_dataset=older, max_steps=1)
    trainer.train()
    assert "expression" not in trainer.state.log_history[0]
