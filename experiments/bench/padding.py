"""Padding, as a share of the tokens that go through the model: python experiments/bench/padding.py TABLE

The 25 largest tasks of the table, batches of 16, opt_mini's tokenizer; three epochs of each order.
"""

import sys

from bora.config.compose import compose_config
from bora.model.loading import load_backbone
from bora.train import run as training


def main() -> None:
    for order in ("bucketed", "shuffled"):
        for max_tokens in (64, 128, 256):
            overrides = ["data=table", f"data.path={sys.argv[1]}", f"data.order={order}"]
            cfg, _ = compose_config([*overrides, f"data.max_tokens={max_tokens}"])
            pretrained = load_backbone(cfg.model, "cpu", max_tokens)
            loader = training.build_data(cfg, pretrained, training.load_corpus(cfg, pretrained)).train_dataloader()
            processed = padding = 0
            for epoch in range(3):
                loader.sampler.set_epoch(epoch)
                for batch in loader:
                    # A document is followed by padding only, and its first token alone is unscored.
                    real = (batch["labels"][:, 1:] != -100).sum().item() + len(batch["labels"])
                    processed += batch["labels"].numel()
                    padding += batch["labels"].numel() - real
            print(f"{order}, {max_tokens} tokens: {padding / processed:.1%}", flush=True)


if __name__ == "__main__":
    main()
