"""What is believed of the tasks before their documents, and after: prior, objective, adapters, optimiser, model."""
