"""A small file or folder of each data set, in the layout of its release, with invented text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.files import EMORY_HEAD, emory_json, iemocap, meld

MEISD_HEAD = (
    "TV Series,Utterances,dialog_ids,uttr_ids,seasons,episodes,start_times,end_times,sentiment,"
    "emotion,intensity,emotion2,intensity2,emotion3,intensity3\n"
)


def meisd(folder: Path, *rows: str, name: str = "MEISD_text.csv") -> Path:
    """Rows as "text,dialogue,number,emotion,intensity,...": the columns between are filled."""
    path = folder / name
    lines = []
    for row in rows:
        text, dialogue, number, *felt = row.split(",")
        felt += [""] * (6 - len(felt))
        lines.append(",".join(["XY", text, dialogue, number, "1", "2", "0", "1", "neutral", *felt]))
    path.write_text(MEISD_HEAD + "".join(f"{line}\n" for line in lines))
    return path


CPED_HEAD = (
    "\ufeffTV_ID,Dialogue_ID,Utterance_ID,Speaker,Gender,Age,Neuroticism,Extraversion,Openness,Agreeableness,"
    "Conscientiousness,Scene,FacePosition_LU,FacePosition_RD,Sentiment,Emotion,DA,Utterance\n"
)
ONE = (
    "07,07_003,07_003_000,小周,female,young,low,high,unknown,low,high,home,1_1,2_2,neutral,worried,"
    "question,谁在那儿"
)
TWO = "07,07_003,07_003_001,其他," + "unknown," * 7 + "home,1_1,2_2,neutral,Neutral,answer,没有人。"


def cped(folder: Path, *rows: str, name: str = "train_split.csv") -> Path:
    path = folder / name
    path.write_text(CPED_HEAD + "".join(f"{r}\r\n" for r in rows), encoding="utf-8", newline="")
    return path


def voted(label: int) -> list[dict[str, Any]]:
    return [{"a1b2c3d4": 0}, {"b2c3d4e5": label}, {"c3d4e5f6": label}, {"emotion": label, "sentiment": 1}]


DIALOGUES = {
    "MUL0001.json": {"log": [
        {"text": "I need a taxi.", "metadata": {}, "emotion": voted(0)},
        {"text": "Where to?", "metadata": {}, "emotion": []},
        {"text": "You are no help!", "metadata": {}, "emotion": voted(2)},
    ]},
}  # fmt: skip
MAGE = {"DMAGE1.json": {"log": [{"text": "Thanks, lovely.", "emotion": voted(6)}, {"text": "Bye."}]}}
SPLITS = {
    "train": {"multiwoz": ["MUL0001.json"], "dialmage": []},
    "dev": {"multiwoz": [], "dialmage": ["DMAGE1.json"]},
    "test": {"multiwoz": [], "dialmage": []},
}


def emowoz(folder: Path, dialogues: Any = DIALOGUES, splits: Any = SPLITS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "emowoz-multiwoz.json"
    path.write_text(json.dumps(dialogues, indent=2))
    (folder / "emowoz-dialmage.json").write_text(json.dumps(MAGE))
    (folder / "data-split.json").write_text(json.dumps(splits))
    return path


def written(text: str, name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_text(text)
        return folder / name

    return write


def dailydialog(folder: Path) -> Path:
    (folder / "dialogues_emotion_test.txt").write_text("0\n")
    return written("Oh . __eou__\n", "dialogues_test.txt")(folder)


def dyadic(folder: Path) -> Path:
    head = "Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Old_Dialogue_ID,Old_Utterance_ID\n"
    return meld(folder, "Hi,Ann,joy,x,0,0,1,1", name="dev_sent_emo_dya.csv", head=head)


def table(folder: Path) -> Path:
    (folder / "rows.csv").write_text("t,w,c\nHi.,Ann,1\n")
    return written('path = "rows.csv"\ntext = "t"\nspeaker = "w"\nconversation = "c"\n', "rows.toml")(folder)


FIXTURES: dict[str, Callable[[Path], Path]] = {
    "meld": lambda f: meld(f, "1,Hi,Ann,joy,x,0,0,1,1"),
    "meld-dyadic": dyadic,
    "emorynlp": lambda f: meld(f, "Hi.,['Ann'],Mad,1,1,1,1,0,0", name="dev.csv", head=EMORY_HEAD),
    "emorynlp-json": written(emory_json(), "emotion-detection-dev.json"),
    "iemocap": iemocap,
    "dailydialog": dailydialog,
    "meisd": lambda f: meisd(f, "Hi,1,0,joy,1"),
    "cped": lambda f: cped(f, ONE),
    "emowoz": emowoz,
    "jsonl": written('{"id": "a", "turns": [{"speaker": "A", "text": "x"}]}\n', "mine.jsonl"),
    "table": table,
}
