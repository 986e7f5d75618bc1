"""Train opt_mini, the small OPT language model that travels inside the package.

    python experiments/opt_mini/train.py            # about half an hour on 2 cores

Text: the functions of the Python standard library (3.11, its test package included), except the
packages and modules that conf/data/stdlib.yaml names as tasks: those the model has never seen.
Every 50th file is held out. Written: the model and its tokenizer in Hugging Face format to
bora/assets/opt_mini/, log.csv and held_out.json beside this script.
"""

import argparse
import csv
import json
import math
import platform
import time
from collections import Counter
from pathlib import Path

import torch
import transformers
from omegaconf import OmegaConf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from bora.data import stdlib

HERE = Path(__file__).parent
REPOSITORY = HERE.parent.parent
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]  # OPT's own special tokens, at OPT's own ids
PAD, BOS = 1, 2


def corpus(excluded: set[str]) -> tuple[list[str], list[str], list[str]]:
    """Training documents, held-out documents, names of the modules that they come from."""
    root = stdlib.source_root()
    train, held_out, names = [], [], set()
    for i, file in enumerate(sorted(root.rglob("*.py"))):
        parts = file.relative_to(root).parts
        module = parts[0].removesuffix(".py")
        if module in excluded or module in ("site-packages", "config") or module.startswith("_sysconfig"):
            continue
        try:
            documents = [f for f in stdlib.functions(file.read_text("utf-8")) if len(f) > 100]
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue  # the test package holds files that are broken on purpose
        names.add(module)
        (held_out if i % 50 == 0 else train).extend(documents)
    train = list(dict.fromkeys(train))
    seen = set(train)
    return train, [d for d in dict.fromkeys(held_out) if d not in seen], sorted(names)


def train_tokenizer(documents: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE; a text starts with </s>, as with every OPT model."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        documents,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    bpe.post_processor = processors.TemplateProcessing(
        single="</s> $A", pair="</s> $A </s> $B", special_tokens=[("</s>", BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="</s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=256,
    )


def unigram_nll(train_ids: list[int], held_out_ids: list[int], vocabulary: int) -> float:
    """Nats a token of held-out text under add-one smoothed token frequencies."""
    counts, total = Counter(train_ids), len(train_ids) + vocabulary
    return -sum(math.log((counts[i] + 1) / total) for i in held_out_ids) / len(held_out_ids)


@torch.no_grad()
def held_out_nll(model, documents: list[list[int]], length: int) -> tuple[float, int]:
    """Nats a scored token over documents cut at `length` tokens (each starts with </s>)."""
    model.eval()
    nats, tokens = 0.0, 0
    documents = sorted((d[:length] for d in documents), key=len)
    for i in range(0, len(documents), 32):
        batch = documents[i : i + 32]
        width = max(map(len, batch))
        ids = torch.tensor([d + [PAD] * (width - len(d)) for d in batch])
        labels = ids.masked_fill(ids == PAD, -100)
        logits = model(input_ids=ids).logits[:, :-1]
        nats += torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum").item()
        tokens += int((labels[:, 1:] != -100).sum())
    model.train()
    return nats / tokens, tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch-size", type=int, default=32, help="windows a step")
    parser.add_argument("--length", type=int, default=256, help="tokens a window")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "bora/assets/opt_mini")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    started = time.perf_counter()

    tasks = set(OmegaConf.load(REPOSITORY / "conf/data/stdlib.yaml").modules)
    train, held_out, names = corpus(tasks)
    tokenizer = train_tokenizer(train, args.vocabulary)
    train_ids = tokenizer(train)["input_ids"]
    held_out_ids = tokenizer(held_out)["input_ids"]
    print(
        f"{len(train)} training documents, {len(held_out)} held out, from {len(names)} modules; "
        f"{sum(map(len, train_ids)):,} training tokens",
        flush=True,
    )
    # One stream of documents in random order, each after its </s>, cut into windows.
    order = torch.randperm(len(train_ids)).tolist()
    stream = torch.tensor([t for i in order for t in train_ids[i]])
    windows = stream[: len(stream) // args.length * args.length].view(-1, args.length)

    model = OPTForCausalLM(
        OPTConfig(
            vocab_size=args.vocabulary,
            hidden_size=192,
            word_embed_proj_dim=192,
            ffn_dim=768,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=256,
            dropout=0.0,
            attention_dropout=0.0,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=BOS,
        )
    )
    n_parameters = sum(p.numel() for p in model.parameters())
    optimiser = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=0.1)
    warmup = max(1, args.steps // 25)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda s: min(1.0, (s + 1) / warmup) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, s / args.steps)))),
    )
    log = csv.writer((HERE / "log.csv").open("w", newline=""))
    log.writerow(["step", "tokens", "seconds", "train_nll", "held_out_nll", "held_out_perplexity"])
    batches = iter([])
    running = []
    for step in range(1, args.steps + 1):
        rows = next(batches, None)
        if rows is None or len(rows) < args.batch_size:
            batches = iter(torch.randperm(len(windows)).split(args.batch_size))
            rows = next(batches)
        ids = windows[rows]
        logits = model(input_ids=ids).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        running.append(loss.item())
        if step % 100 == 0 or step == args.steps:
            nll, scored = held_out_nll(model, held_out_ids, args.length)
            row = [
                step,
                step * ids.numel(),
                round(time.perf_counter() - started),
                *(round(v, 4) for v in (sum(running) / len(running), nll, math.exp(nll))),
            ]
            log.writerow(row)
            print(*row, flush=True)
            running = []

    unigram = unigram_nll(
        [t for d in train_ids for t in d[1:]], [t for d in held_out_ids for t in d[1 : args.length]], args.vocabulary
    )
    model.half().save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    reloaded = OPTForCausalLM.from_pretrained(args.out, dtype=torch.float32)
    nll, scored = held_out_nll(reloaded, held_out_ids, args.length)
    (HERE / "held_out.json").write_text(
        json.dumps(
            {
                "held_out_nll": nll,
                "held_out_perplexity": math.exp(nll),
                "unigram_perplexity": math.exp(unigram),
                "held_out_documents": len(held_out),
                "held_out_scored_tokens": scored,
                "training_documents": len(train),
                "training_tokens": int(stream.numel()),
                "tokens_seen": args.steps * args.batch_size * args.length,
                "parameters": n_parameters,
                "seconds": round(time.perf_counter() - started),
                "arguments": {k: v for k, v in vars(args).items() if k != "out"},
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "task_modules_left_out": sorted(tasks),
            },
            indent=2,
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
