"""A table of Talk of Norway's size, from the command to the first batch: python experiments/bench/table.py FOLDER

Writes FOLDER/ton.csv (240,000 speeches, 90 columns, 1.13 GB; random words, seed 0), then starts two processes, the
first with an empty cache, the second with what the first left. Each prints the seconds from the table to the first
batch (imports and the model's loading are not counted) and its peak memory, with libraries and model.
"""

import csv
import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

SPEECHES, COLUMNS, WORDS = 240_000, 90, 20_000


def generate(file: Path) -> None:
    rng = random.Random(0)
    letters = "eeeeeeaaaarrrnnntttssiillddooggkkmmvvffuupphhbbyjøåæc"
    words = ["".join(rng.choices(letters, k=rng.randrange(2, 11))) for _ in range(WORDS)]
    pool = [rng.choice(words) for _ in range(WORDS * 10)]
    cells = [f"value_{i}" for i in range(5000)]
    names = ["id", "rep_name", "party_id", "date", "text"]
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow([*names, *(f"column_{i}" for i in range(COLUMNS - len(names)))])
        for i in range(SPEECHES):
            speaker, length = int(rng.random() ** 2 * 600), rng.randrange(5, 1020)
            start = rng.randrange(len(pool) - length)
            date = f"{1998 + i * 18 // SPEECHES}-{1 + i % 12:02d}-{1 + i % 28:02d}"
            row = [i, f"Speaker {speaker}" if speaker else "NA", f"P{speaker % 8}", date]
            row.append(" ".join(pool[start : start + length]))
            writer.writerow(row + rng.choices(cells, k=COLUMNS - len(names)))


def measure(file: str) -> None:
    from bora.config.compose import compose_config
    from bora.model.loading import load_backbone
    from bora.train import run as training

    cfg, _ = compose_config(["data=talk_of_norway", f"data.path={file}"])
    pretrained = load_backbone(cfg.model, "cpu", cfg.data.max_tokens)
    start = time.perf_counter()
    corpus = training.load_corpus(cfg, pretrained)
    next(iter(training.build_data(cfg, pretrained, corpus).train_dataloader()))
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(f"{seconds:.1f} s, peak {peak:,.0f} MiB; {len(corpus.documents):,} documents", flush=True)


def main() -> None:
    folder = Path(sys.argv[1])
    if "--measure" in sys.argv:
        measure(str(folder / "ton.csv"))
        return
    folder.mkdir(parents=True, exist_ok=True)
    generate(folder / "ton.csv")
    print(f"{folder / 'ton.csv'}: {(folder / 'ton.csv').stat().st_size / 1e9:.2f} GB")
    environment = {**os.environ, "BORA_CACHE": str(folder / "cache")}
    for _ in range(2):
        subprocess.run(
            [sys.executable, __file__, str(folder), "--measure"],
            check=True,
            env=environment,
            cwd=Path(__file__).parents[2],
        )


if __name__ == "__main__":
    main()
