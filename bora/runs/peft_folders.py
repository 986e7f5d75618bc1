"""What a folder made by `bora export` looks like: the names of its files."""

MAPPING = "tasks.json"  # {"mean": its folder or null, "tasks": {folder: the task's name}}
MEAN = "hierarchical-mean"
CARD = "README.md"
# PEFT's own names, in an adapter's folder and in its file of tensors.
ADAPTER_CONFIG, ADAPTER_TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
