"""Everything that knows PyTorch: the lecture's side in torch, weights both ways, the ledger and lockstep runs."""
