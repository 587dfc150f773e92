"""Against real state_dicts: keys, order, layouts, bits, and what a network computes from them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax.errors import InputError
from cifar_jax.nn.batch_norm import torch_rule
from cifar_jax.nn.models import create_model
from cifar_jax.parity.state_dict import from_state_dict, to_state_dict

STAGES = {
    "cnn6": ((2, 3), (4, 5), (6, 7)),
    "cnn10": ((2, 3), (4, 5), (6, 7, 8), (9, 10, 11)),
}


@pytest.fixture(params=STAGES)
def variables(request, rng):
    """A network's variables with a different number at each place, -0.0, NaN and a subnormal among them."""
    model = create_model(request.param, norm_rule=torch_rule(), num_classes=12, stages=STAGES[request.param])
    # Jitted, as in training, it comes back with its keys in alphabetical order: conv1, conv10, conv2.
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((2, 32, 32, 3)), train=False))
    leaves, treedef = jax.tree.flatten(shapes)
    leaves = [rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves]
    leaves[0].flat[:3] = [-0.0, np.nan, 1e-40]
    return request.param, jax.tree.unflatten(treedef, leaves)


def identical(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: x.dtype == y.dtype and x.tobytes() == y.tobytes(), a, b))


def test_round_trips_are_bitwise(variables):
    _, tree = variables
    state_dict = to_state_dict(tree["params"], tree["batch_stats"], updates=7)
    back = from_state_dict(state_dict, tree["params"], tree["batch_stats"])
    assert back.updates == 7
    assert identical(back.params, tree["params"])
    assert identical(back.batch_stats, tree["batch_stats"])
    again = to_state_dict(back.params, back.batch_stats, updates=back.updates)
    assert list(again) == list(state_dict)
    assert identical(again, state_dict)


def test_gradients_and_moments_go_without_statistics(variables):
    _, tree = variables
    state_dict = to_state_dict(tree["params"])
    assert not any("running" in key or "tracked" in key for key in state_dict)
    back = from_state_dict(state_dict, tree["params"])
    assert identical(back.params, tree["params"])
    assert back.batch_stats == {}


def test_keys_shapes_types_and_order_are_torchs(torch, variables):
    from cifar_jax.parity.twin import create_twin

    name, tree = variables
    theirs = create_twin(name, num_classes=12, stages=STAGES[name]).state_dict()
    ours = to_state_dict(tree["params"], tree["batch_stats"])
    assert list(ours) == list(theirs)
    for key, array in ours.items():
        assert array.shape == tuple(theirs[key].shape), key
        assert torch.from_numpy(array.copy()).dtype == theirs[key].dtype, key
        assert array.flags.c_contiguous


def test_only_parameters_are_what_an_optimizer_sees(torch, variables):
    from cifar_jax.parity.twin import create_twin

    name, tree = variables
    named = create_twin(name, num_classes=12, stages=STAGES[name]).named_parameters()
    assert list(to_state_dict(tree["params"])) == [key for key, _ in named]


def test_everything_wrong_is_listed_at_once():
    params = {"conv1": {"kernel": np.zeros((3, 3, 3, 4), np.float32)}, "norm1": {"scale": np.zeros(4, np.float32)}}
    stats = {"norm1": {"mean": np.zeros(4, np.float32)}}
    state_dict = {
        "conv1.weight": np.zeros((4, 4, 3, 3), np.float32),
        "norm1.running_mean": np.zeros(4, np.float16),
        "head.bias": np.zeros(4, np.float32),
        "norm1.num_batches_tracked": np.zeros((1,), np.int64),
    }
    with pytest.raises(InputError) as error:
        from_state_dict(state_dict, params, stats, source="a.pt")
    assert str(error.value) == (
        "a.pt does not fit the network: missing norm1.weight; unused head.bias; conv1.weight must have shape "
        "[4, 3, 3, 3], got [4, 4, 3, 3]; norm1.running_mean must be float32, got float16; norm1.num_batches_tracked "
        "must have shape [], got [1]."
    )


def test_counters_that_differ_are_refused(variables):
    _, tree = variables
    state_dict = to_state_dict(tree["params"], tree["batch_stats"], updates=3)
    state_dict["norm2.num_batches_tracked"] = np.asarray(4)
    with pytest.raises(InputError, match=r"num_batches_tracked must be one number, got 3 and 4\."):
        from_state_dict(state_dict, tree["params"], tree["batch_stats"])
