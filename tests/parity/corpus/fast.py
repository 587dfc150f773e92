"""A tenth of the corpus, which runs with the tests: names of cases, to be had without torch."""

# Correct ports, usual and unusual; a mistake of each family; a loss, an optimizer, a schedule.
FAST = [
    "resnet", "resnet same", "resnet residual_order", "resnet momentum", "densenet order", "decoder no_mask",
    "lstm first", "gru reset", "mlp", "mlp gelu", "nnx mlp", "nnx mlp epsilon", "channels first", "an LSTM by hand",
    "loss sum", "sgd decay mask", "schedule unit",
]  # fmt: skip
