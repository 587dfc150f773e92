import jax.numpy as jnp
import numpy as np

from cifar_jax.nn.losses import batch_metrics, cross_entropy


def test_cross_entropy_matches_torch(torch, rng):
    """1e-6: float32. Large logits, where softmax and then log gives inf."""
    logits = (50 * rng.normal(size=(64, 100))).astype(np.float32)
    labels = rng.integers(0, 100, 64)
    expected = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels), reduction="none").numpy()
    np.testing.assert_allclose(cross_entropy(jnp.asarray(logits), jnp.asarray(labels)), expected, rtol=1e-6, atol=1e-6)
    with np.errstate(all="ignore"):
        naive = -np.log(np.exp(logits) / np.exp(logits).sum(1, keepdims=True))[np.arange(64), labels]
    assert not np.isfinite(naive).all()


def test_sums_of_batches_are_those_of_the_whole(rng):
    logits, labels = jnp.asarray(rng.normal(size=(10, 5)), jnp.float32), jnp.asarray(rng.integers(0, 5, 10))
    whole = batch_metrics(logits, labels)
    parts = [batch_metrics(logits[i : i + 4], labels[i : i + 4]) for i in (0, 4, 8)]
    assert sum(int(p.count) for p in parts) == int(whole.count) == 10
    assert sum(int(p.correct) for p in parts) == int(whole.correct) == int((logits.argmax(1) == labels).sum())
    np.testing.assert_allclose(sum(p.loss_sum for p in parts), whole.loss_sum, rtol=1e-6)


def test_masked_rows_count_for_nothing(rng):
    logits, labels = jnp.asarray(rng.normal(size=(6, 5)), jnp.float32), jnp.arange(6) % 5
    broken = jnp.concatenate([logits, jnp.full((2, 5), jnp.inf)])
    masked = batch_metrics(broken, jnp.concatenate([labels, jnp.zeros(2, int)]), jnp.arange(8) < 6)
    whole = batch_metrics(logits, labels)
    assert (int(masked.correct), int(masked.count)) == (int(whole.correct), 6)
    np.testing.assert_allclose(masked.loss_sum, whole.loss_sum, rtol=1e-6)
