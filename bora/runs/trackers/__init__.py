"""Weights & Biases, MLflow and TensorBoard behind one small class."""
