"""What is believed of the tasks before and after their documents: prior, objective, adapters, optimiser."""
