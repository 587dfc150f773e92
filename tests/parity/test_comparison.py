"""Any torch module against any Flax module: the fast tenth of the corpus, and each part against torch itself."""

import json

import jax
import numpy as np
import pytest
from conftest import ROOT
from parity.corpus.fast import FAST

from cifar_jax.errors import InputError


@pytest.fixture(scope="module")
def cases(torch):
    from parity.corpus.cases import CASES

    return {case.name: case for case in CASES}


# With nothing compiled before, each of these takes as long as all the others together.
LONG = ("densenet order", "decoder no_mask", "resnet", "lstm first", "sgd decay mask")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in FAST]
)
def test_corpus(cases, name):
    from parity.corpus.score import run_case

    scored = run_case(cases[name])
    assert not scored.error
    if scored.planted:
        assert scored.place_right, scored
        assert scored.first_right, scored
    else:
        assert not scored.alarm, scored


def test_corpus_has_enough(cases):
    planted = [case for case in cases.values() if case.causes]
    assert len(planted) >= 80
    assert len({cause for case in planted for cause in case.causes}) >= 40
    assert len(cases) - len(planted) >= 20


def small_pair(torch):
    from parity.corpus import sequences

    torch.manual_seed(0)
    return sequences.TorchMLP(), sequences.MLP()


@pytest.fixture(scope="module")
def equal_result(torch):
    from cifar_jax.parity.comparison import compare

    return compare(*small_pair(torch), "6,9")


@pytest.fixture(scope="module")
def different_result(torch):
    from parity.corpus import sequences

    from cifar_jax.parity.comparison import compare

    return compare(sequences.TorchMLP(), sequences.MLP(mistake="gelu"), "6,9")


class TestResult:
    def test_equal_says_so_and_asserts(self, equal_result):
        assert equal_result.equal
        assert "equal" in str(equal_result)
        assert equal_result.first is None
        equal_result.assert_equal()

    def test_different_raises_with_the_line_to_change(self, different_result):
        assert different_result.first.cause == "gelu_form"
        with pytest.raises(AssertionError, match="approximate=False"):
            different_result.assert_equal()

    def test_json_names_both_lines(self, different_result):
        content = json.loads(json.dumps(different_result.to_json()))
        where = content["findings"][0]["where"][0]
        assert where["function"] == "gelu"
        assert where["port_source"]["file"].endswith("sequences.py")
        assert "gelu" in where["port_source"]["text"]
        assert content["numeric"] == "different"

    def test_page_has_cause_layers_and_no_other_file(self, different_result, tmp_path):
        different_result.write_html(tmp_path / "page.html")
        page = (tmp_path / "page.html").read_text()
        assert "gelu_form" in page
        assert page.count('class="row ') >= len(different_result.layers)
        assert "http" not in page

    def test_settings_of_jax_come_back(self, equal_result):
        assert not jax.config.jax_enable_x64
        assert jax.config.jax_numpy_rank_promotion == "raise"


class TestMapping:
    def test_converts_both_ways_bit_for_bit(self, cases, rng):
        from cifar_jax.parity.comparison import compare

        case = cases["lstm"]
        model, port = case.torch(), case.port()
        mapping = compare(model, port, case.shapes).mapping
        params = port.init(jax.random.key(0), np.zeros((4, 7), np.int32))["params"]
        flat = {
            "/".join(each.key for each in path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(params)
        }
        start = {name: each.detach().numpy() for name, each in model.named_parameters()}
        back = mapping.to_flax(mapping.to_torch(flat, start), flat)
        assert back.keys() == flat.keys()
        for path in flat:
            np.testing.assert_array_equal(back[path], flat[path])

    def test_is_saved_and_given(self, different_result, tmp_path, torch):
        from cifar_jax.parity.comparison import compare, load_mapping

        different_result.mapping.save(tmp_path / "mapping.json")
        loaded = load_mapping(tmp_path / "mapping.json")
        assert str(loaded) == str(different_result.mapping)
        assert compare(*small_pair(torch), "6,9", mapping=loaded).equal

    def test_refuses_a_layout_that_does_not_fit(self, different_result, tmp_path):
        from cifar_jax.parity.comparison import load_mapping

        different_result.mapping.save(tmp_path / "mapping.json")
        text = (tmp_path / "mapping.json").read_text().replace("[in, out]", "[sideways]")
        (tmp_path / "mapping.json").write_text(text)
        with pytest.raises(InputError, match="must be one of"):
            load_mapping(tmp_path / "mapping.json")

    @pytest.mark.parametrize(
        ("kind", "torch_shape", "flax_shape"),
        [
            ("conv", (6, 4, 3, 3), (3, 3, 4, 6)),
            ("conv_transpose", (4, 6, 3, 3), (3, 3, 4, 6)),
            ("linear", (6, 12), (12, 6)),
            ("linear", (12, 12), (12, 3, 4)),
            ("embedding", (5, 7), (5, 7)),
            ("conv", (6, 3, 4, 4), (48, 6)),
            ("plain", (1, 5, 6), (5, 6)),
        ],
    )
    def test_every_layout_has_its_inverse(self, kind, torch_shape, flax_shape, rng, torch):
        from cifar_jax.parity.comparison.layouts import layouts

        array = rng.normal(size=flax_shape)
        found = layouts(kind, torch_shape, flax_shape, [(3, 2, 2)])
        assert found
        for layout in found:
            result = layout.to_torch(array)
            assert result.shape == torch_shape
            np.testing.assert_array_equal(layout.to_flax(result, flax_shape), array)


class TestCommand:
    @pytest.fixture
    def files(self, tmp_path, torch):
        (tmp_path / "theirs.py").write_text(
            "import torch\n"
            "class Net(torch.nn.Module):\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            "        self.first, self.last = torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)\n"
            "    def forward(self, x):\n"
            "        return self.last(torch.relu(self.first(x)))\n"
            "def breaks():\n"
            "    raise RuntimeError('no such file')\n"
        )
        (tmp_path / "ours.py").write_text(
            "import flax.linen as nn\n"
            "class Net(nn.Module):\n"
            "    wrong: bool = False\n"
            "    @nn.compact\n"
            "    def __call__(self, x):\n"
            "        x = nn.Dense(8)(x)\n"
            "        return nn.Dense(2)(nn.tanh(x) if self.wrong else nn.relu(x))\n"
            "def wrong():\n"
            "    return Net(wrong=True)\n"
            "class Other(nn.Module):\n"
            "    @nn.compact\n"
            "    def __call__(self, x):\n"
            "        return nn.Dense(3)(x)\n"
        )
        return f"{tmp_path}/theirs.py", f"{tmp_path}/ours.py"

    def run(self, *argv):
        from cifar_jax.parity.comparison.command import main

        return main(list(argv))

    def test_equal_and_different(self, files, tmp_path, capsys):
        theirs, ours = files
        assert self.run(f"{theirs}:Net", f"{ours}:Net", "--input=5,4") == 0
        page, figures = tmp_path / "out" / "page.html", tmp_path / "out" / "figures.json"
        assert self.run(f"{theirs}:Net", f"{ours}:wrong", "--input=5,4", f"--html={page}", f"--json={figures}") == 1
        assert "applies tanh where PyTorch applies relu" in capsys.readouterr().out
        assert page.exists()
        assert json.loads(figures.read_text())["findings"][0]["cause"] == "activation"

    @pytest.mark.parametrize(
        ("theirs", "ours", "flags", "message"),
        [
            ("Net", "Net", ["--input=5,3"], "theirs.py:7 .*got|theirs.py"),
            ("Nets", "Net", ["--input=5,4"], "does not have; it has"),
            ("breaks", "Net", ["--input=5,4"], "theirs.py:9"),
            ("Net", "Net", ["--input=five"], "must be shapes"),
            ("Net", "Net", [], "got neither"),
            ("Net", "Other", ["--input=5,4"], "too few to compare"),
            ("Net", "Net", ["--input=5,4", "--call=train"], "--call must be"),
        ],
    )
    def test_wrong_input_is_one_sentence(self, files, theirs, ours, flags, message):
        with pytest.raises(InputError, match=message) as raised:
            self.run(f"{files[0]}:{theirs}", f"{files[1]}:{ours}", *flags)
        assert "\n" not in str(raised.value)

    def test_nan_and_chance_are_found(self, torch):
        from parity.corpus import sequences

        from cifar_jax.parity.comparison import compare

        class Nan(sequences.TorchMLP):
            def forward(self, x):
                return torch.log(-torch.abs(super().forward(x)))

        class Chance(sequences.TorchMLP):
            def forward(self, x):
                return super().forward(x) + torch.rand(1)

        with pytest.raises(InputError, match="not finite, first in log"):
            compare(Nan(), sequences.MLP(), "6,9")

    def test_help_needs_no_torch(self):
        import subprocess
        import sys

        code = (
            "import sys; sys.modules['torch'] = None\n"
            "from cifar_jax.parity.comparison import command\n"
            "assert 'Exit codes' in command.__doc__"
        )
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


class TestWrittenOut:
    """What is written out, so that its parts can be changed, equals torch before anything is changed."""

    def test_attention(self, torch, rng):
        from cifar_jax.parity.comparison.torch_side import scaled_attention

        q, k, v = (torch.from_numpy(rng.normal(size=(2, 3, 5, 4))) for _ in range(3))
        for causal in (False, True):
            theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
            torch.testing.assert_close(scaled_attention(q, k, v, is_causal=causal), theirs)

    @pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
    @pytest.mark.parametrize("both", [False, True])
    def test_recurrence(self, torch, rng, kind, both):
        from cifar_jax.parity.comparison.causes.structure import recurrent

        module = getattr(torch.nn, kind)(3, 4, num_layers=2, bidirectional=both).double()
        x = torch.from_numpy(rng.normal(size=(5, 2, 3)))
        name = {"RNN": "rnn_tanh"}.get(kind, kind.lower())
        arguments = {
            "input": x,
            "weights": module._flat_weights,
            "has_biases": True,
            "num_layers": 2,
            "bidirectional": both,
            "batch_first": False,
        }
        torch.testing.assert_close(recurrent(name, arguments)[0], module(x)[0])

    @pytest.mark.parametrize("size", [3, 7, 16])
    @pytest.mark.parametrize("corners", [False, True])
    def test_resize(self, torch, rng, size, corners):
        from cifar_jax.parity.comparison.causes.resize import resize

        x = torch.from_numpy(rng.normal(size=(2, 3, 8, 8)))
        for mode, kernel in (("bilinear", "linear"), ("bicubic", "cubic_torch")):
            theirs = torch.nn.functional.interpolate(x, (size, size), mode=mode, align_corners=corners)
            mine = resize(x, (size, size), kernel=kernel, corners=corners, antialias=False, clamp=True)
            torch.testing.assert_close(mine, theirs)

    def test_resize_as_jax(self, torch, rng, x64):
        from cifar_jax.parity.comparison.causes.resize import resize

        x = rng.normal(size=(2, 8, 8, 3))
        for size in (5, 12):
            for method, kernel in (("linear", "linear"), ("cubic", "cubic_half"), ("nearest", "nearest")):
                theirs = np.moveaxis(np.asarray(jax.image.resize(x, (2, size, size, 3), method)), -1, 1)
                smooth = method != "nearest"
                mine = resize(
                    torch.from_numpy(np.moveaxis(x, -1, 1).copy()), (size, size), kernel=kernel, corners=False,
                    antialias=smooth, clamp=False,
                )  # fmt: skip
                # JAX makes its matrix of weights in single precision.
                np.testing.assert_allclose(mine.numpy(), theirs, atol=1e-5)

    def test_pools(self, torch, rng):
        from cifar_jax.parity.comparison.causes.pools import window_pool

        x = torch.from_numpy(rng.normal(size=(2, 3, 9, 9)))
        sides = ((1, 1), (1, 1))
        for counted in (True, False):
            theirs = torch.nn.functional.avg_pool2d(x, 3, 2, 1, count_include_pad=counted)
            mine = window_pool(x, maximum=False, window=(3, 3), stride=(2, 2), padding=sides, counted=counted)
            torch.testing.assert_close(mine, theirs)
        mine = window_pool(x, maximum=True, window=(3, 3), stride=(2, 2), padding=sides, counted=True)
        torch.testing.assert_close(mine, torch.nn.functional.max_pool2d(x, 3, 2, 1))

    def test_norms(self, torch, rng):
        from cifar_jax.parity.comparison.causes.norms import normalised

        x = torch.from_numpy(rng.normal(size=(3, 4, 5, 5)))
        w, b = (torch.from_numpy(rng.normal(size=4)) for _ in range(2))
        arguments = {"input": x, "weight": w, "bias": b, "eps": 1e-5}
        functional = torch.nn.functional
        torch.testing.assert_close(
            normalised("group_norm", {**arguments, "num_groups": 2}), functional.group_norm(x, 2, w, b)
        )
        torch.testing.assert_close(
            normalised("instance_norm", arguments), functional.instance_norm(x, weight=w, bias=b)
        )
        mean, var = torch.zeros(4).double(), torch.ones(4).double()
        batch = {**arguments, "running_mean": mean, "running_var": var, "training": True}
        torch.testing.assert_close(normalised("batch_norm", batch), functional.batch_norm(x, None, None, w, b, True))

    def test_same_padding_is_xlas(self, torch):
        from cifar_jax.parity.comparison.causes.convolutions import same_padding

        for size in range(1, 12):
            for window in (1, 2, 3, 5):
                for stride in (1, 2, 3):
                    pads = jax.lax.padtype_to_pads((size,), (window,), (stride,), "SAME")
                    assert same_padding(size, window, stride) == tuple(pads[0])

    def test_own_adam_is_torchs(self, torch, rng):
        from cifar_jax.parity.comparison.updates import _OwnAdam

        start = rng.normal(size=(3, 2))
        for kind, options in ((torch.optim.Adam, {}), (torch.optim.AdamW, {"decoupled": True})):
            parameters = [torch.nn.Parameter(torch.from_numpy(start.copy())) for _ in range(2)]
            theirs = kind([parameters[0]], lr=0.1, weight_decay=0.1)
            mine = _OwnAdam([parameters[1]], lr=0.1, weight_decay=0.1, **options)
            for _ in range(5):
                gradient = torch.from_numpy(rng.normal(size=(3, 2)))
                for each, optimizer in zip(parameters, (theirs, mine), strict=True):
                    each.grad = gradient.clone()
                    optimizer.step()
            torch.testing.assert_close(parameters[0], parameters[1])


class TestValues:
    def test_fingerprint_knows_no_order_but_every_value(self, rng):
        from cifar_jax.parity.comparison.fingerprints import agree, fingerprint

        array = rng.normal(size=(4, 5, 6))
        assert agree(fingerprint(array), fingerprint(array.transpose(2, 0, 1)))
        changed = array.copy()
        changed[0, 0, 0] += 1e-4
        assert not agree(fingerprint(array), fingerprint(changed))
        assert not agree(fingerprint(array), fingerprint(np.full((4, 5, 6), np.nan)))

    def test_single_precision_is_raised(self, x64):
        import jax.numpy as jnp

        from cifar_jax.parity.comparison.jaxpr_values import evaluate, trace

        def function(x):
            return jnp.asarray(x, jnp.float32) * jnp.float32(0.1) + 0.7

        x = jnp.asarray([1 / 3, 2 / 3])
        evaluation = evaluate(trace(function, x), [x], ["x"])
        result = evaluation.values[evaluation.outputs[0]].array
        np.testing.assert_allclose(result, np.array([1 / 3, 2 / 3]) * 0.1 + 0.7, rtol=1e-15)
        assert np.abs(np.asarray(function(x)) - result).max() > 1e-9  # as it stands, the port rounds

    def test_gradients_inside_are_jaxs(self, x64, rng):
        import jax.numpy as jnp

        from cifar_jax.parity.comparison.jaxpr_values import evaluate, gradients, trace

        def function(w, x):
            return [jax.nn.relu(x @ w)]

        w, x = jnp.asarray(rng.normal(size=(3, 2))), jnp.asarray(rng.normal(size=(4, 3)))
        closed = trace(function, w, x)
        values = evaluate(closed, [w, x], ["w", "x"]).values
        product = next(value.index for value in values if value.primitive == "dot_general")
        inner, outer = gradients(closed, [w, x], values, [product], [0], lambda results: (results[0] ** 2).sum())
        np.testing.assert_allclose(outer[0], jax.grad(lambda w: (function(w, x)[0] ** 2).sum())(w))
        np.testing.assert_allclose(inner[product], 2 * np.asarray(jax.nn.relu(x @ w)))


class TestInitial:
    def test_alike_passes_and_another_family_fails(self, rng, torch):
        from cifar_jax.parity.comparison.initial import _same_distribution, family_of

        uniform, normal = rng.uniform(-1, 1, 5000), rng.normal(size=5000) / np.sqrt(3)
        assert _same_distribution(uniform, rng.uniform(-1, 1, 5000)) > 1e-3
        assert _same_distribution(uniform, normal) < 1e-6
        assert (family_of(uniform), family_of(normal), family_of(np.zeros(9))) == ("uniform", "normal", "constant")
