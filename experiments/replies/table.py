"""Make the table of replies: each speech of Shakespeare's plays with the speech before it in its scene.

    .venv/bin/python experiments/replies/table.py shakespeare.csv.xz replies.csv.gz      # all of them
    .venv/bin/python experiments/replies/table.py replies.csv.gz RUN test.csv.gz         # those that RUN tested

The corpus's table has a row a speech, in the plays' order: rep_name, "CHARACTER (Play)"; text; play, speaker, act, scene.
"""

import sys

import pandas as pd

from bora.data.columns import Columns
from bora.data.table import read

COLUMNS = Columns(task="rep_name", prompt=("play", "speaker", "act", "scene"))


def replies(speeches: pd.DataFrame) -> pd.DataFrame:
    """Pair speeches: columns task, cue ("SPEAKER: what was said just before"), reply.

    Args:
        speeches: from `bora.data.table.read` with COLUMNS, in the plays' order.
    """
    before = speeches.shift(1)
    places = ["{play}", "{act}", "{scene}"]
    same_scene = (speeches[places] == before[places]).all(axis=1) & (speeches["task"] != before["task"])
    cue = before["{speaker}"] + ": " + before["text"]
    return pd.DataFrame({"task": speeches["task"], "cue": cue, "reply": speeches["text"]})[same_scene]


if __name__ == "__main__":
    source, *run, target = sys.argv[1:]
    if run:
        tested = pd.read_csv(f"{run[0]}/documents.csv").query("split == 'test'")["row"]
        pd.read_csv(source).loc[tested].to_csv(target, index=False)
    else:
        replies(read(source, COLUMNS)).to_csv(target, index=False)
