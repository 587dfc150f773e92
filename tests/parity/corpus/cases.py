"""The corpus: networks, correct ports, planted mistakes with the cause and the place that must be named."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
import torch
import torch.nn.functional as F
from flax import nnx
from parity.corpus import images, nnx_ports, sequences, unusual


class Case(NamedTuple):
    """One comparison.

    name: network, then mistake. torch, port: make both models. shapes: as `compare` takes them.
    causes: names of causes that are right; empty for a correct port.
    place: the torch function at which both part, or several; empty where any will do.
    loss, optimizers, schedules: pairs, or None.
    """

    name: str
    torch: Callable[[], torch.nn.Module]
    port: Callable[[], Any]
    shapes: str
    causes: tuple[str, ...] = ()
    place: tuple[str, ...] = ()
    loss: tuple | None = None
    optimizers: tuple | None = None
    schedules: tuple | None = None
    steps_per_epoch: int = 1


def _planted(name, torch_class, port_class, shapes, mistakes: str) -> list[Case]:
    """Cases from lines "mistake: causes: functions"."""
    cases = [Case(name, torch_class, port_class, shapes)]
    for line in mistakes.strip().splitlines():
        mistake, causes, place = (part.split() for part in line.split(":"))
        cases.append(
            Case(
                f"{name} {mistake[0]}", torch_class, lambda m=mistake[0]: port_class(mistake=m), shapes, tuple(causes),
                tuple(place),
            )
        )  # fmt: skip
    return cases


def _nnx(port_class):
    return lambda mistake="": port_class(mistake, rngs=nnx.Rngs(0))


RESNET = """
epsilon: epsilon: batch_norm
momentum: running_average: batch_norm
momentum_swapped: running_average: batch_norm
running_in_training: norm_mode: batch_norm
batch_in_evaluation: norm_mode: batch_norm
added_bias: added_bias: conv2d
input_scale: factor input_normalisation: conv2d
half: precision: conv2d
residual_act: added_activation: conv2d relu
stopped: stopped_gradient:
no_shortcut_norm: left_out residual_source: batch_norm add
same: padding: conv2d
dilation: dilation: conv2d
stride_second: stride: conv2d
relu6: activation: relu
no_relu: left_out activation: relu
no_norm2: left_out residual_source: batch_norm add
residual_order: residual_order: add relu
no_residual: missing_residual: add
no_last_relu: left_out: relu
max_head: reduction: mean
sum_head: reduction: mean
no_head_bias: missing_bias: linear
softmax: added_softmax: linear
"""
VGG = """
valid: padding: conv2d
circular: padding_mode: conv2d
no_bias: missing_bias: conv2d
rate: dropout_rate: dropout
avg_pool: pool_kind: max_pool2d
window: pool_window: max_pool2d
never_drops: dropout_mode: dropout
always_drops: dropout_mode: dropout
"""
MOBILE = """
relu: activation: relu6
same: padding: conv2d
silu: activation: hardswish
bottleneck_act: added_activation: batch_norm
gate_max: pool_kind reduction: adaptive_avg_pool2d
sigmoid: activation: hardsigmoid
no_gate: left_out other_input: mul
gate_sum: operation: mul
"""
DENSE = """
order: concatenation_order: cat
not_counted: pool_counts_padding: avg_pool2d
max_pool: pool_kind: avg_pool2d
pool_same: pool_padding: avg_pool2d
no_relu: left_out activation: relu
"""
UNET = """
groups: groups: group_norm
epsilon: epsilon: group_norm
gelu: activation: silu
slope: leaky_slope: leaky_relu
transposed_same: transposed_padding: conv_transpose2d
order: concatenation_order: cat
nearest: resize: interpolate
cubic: resize: interpolate
skip_left_out: concatenation_part left_out: cat
"""
GAN = """
padding: transposed_padding: conv_transpose2d
bias: added_bias: conv_transpose2d
momentum: running_average: batch_norm
leaky: activation: relu
sigmoid: activation: tanh
no_tanh: left_out activation: tanh
"""
VIT = """
epsilon: epsilon: layer_norm
gelu: gelu_form: gelu
relu: activation: gelu
rate: dropout_rate: dropout
norm_bias: missing_bias: layer_norm
no_position: missing_residual: add
cls_last: concatenation_order: cat
no_residual: missing_residual: add
no_norm2: left_out other_input: layer_norm linear
no_final_norm: left_out: layer_norm
mean: sequence_entry: __getitem__
last: sequence_entry: __getitem__
"""
DECODER = """
no_scale: left_out factor: mul
by_head: packed_order: linear chunk
qk: packed_order attention_packing: scaled_dot_product_attention linear
unscaled: attention_scale: scaled_dot_product_attention
scaled_twice: attention_scale: scaled_dot_product_attention
no_mask: attention_mask: scaled_dot_product_attention
mask_late: attention_mask: scaled_dot_product_attention
axis: softmax_axis: scaled_dot_product_attention
heads: attention_heads flatten_order: scaled_dot_product_attention transpose reshape
untied: tied_weights: linear
"""
LSTM = """
scale: embedding_scale factor: embedding
activation: recurrent_activation: lstm
reverse: recurrent_direction: lstm
mean: sequence_entry: __getitem__
max: sequence_entry: __getitem__
first: sequence_entry: __getitem__
"""
GRU = """
reset: recurrent_gates: gru
update: recurrent_gates: gru
order: recurrent_direction: gru
both_forward: recurrent_direction: gru
sum: reduction: mean
last: reduction: mean
"""
MLP = """
gelu: gelu_form: gelu
layer_norm: norm_centre: rms_norm
celu: activation: elu
silu: activation: elu
"""

_SMALL = "4,3,16,16"
NETWORKS = [
    *_planted("resnet", images.TorchResNet, images.ResNet, _SMALL, RESNET),
    *_planted("vgg", images.TorchVGG, images.VGG, _SMALL, VGG),
    *_planted("mobilenet", images.TorchMobile, images.Mobile, _SMALL, MOBILE),
    *_planted("densenet", images.TorchDense, images.DenseNet, _SMALL, DENSE),
    *_planted("unet", images.TorchUNet, images.UNet, "2,3,16,16", UNET),
    *_planted("generator", images.TorchGenerator, images.Generator, "4,10", GAN),
    *_planted("vit", sequences.TorchViT, sequences.ViT, "3,3,16,16", VIT),
    *_planted("decoder", sequences.TorchDecoder, sequences.Decoder, "3,9:int", DECODER),
    *_planted("lstm", sequences.TorchLSTM, sequences.LSTM, "4,7:int", LSTM),
    Case("lstm padding", sequences.TorchPadded, sequences.LSTM, "4,7:int", ("padding_row",), ("embedding",)),
    Case(
        "lstm padding zeros", sequences.TorchPadded, lambda: sequences.LSTM(mistake="padding"), "4,7:int",
        ("embedding_padding",), ("embedding",),
    ),
    *_planted("gru", sequences.TorchGRU, sequences.GRU, "5,4,6", GRU),
    *_planted("mlp", sequences.TorchMLP, sequences.MLP, "6,9", MLP),
    *_planted("nnx vgg", images.TorchVGG, _nnx(nnx_ports.VGG), _SMALL, """
momentum: running_average: batch_norm
valid: padding: conv2d
no_bias: missing_bias: conv2d
avg_pool: pool_kind: max_pool2d
"""),
    *_planted("nnx mlp", sequences.TorchMLP, _nnx(nnx_ports.MLP), "6,9", """
epsilon: epsilon: layer_norm
gelu: gelu_form: gelu
relu: activation: elu
"""),
    *_planted("nnx generator", images.TorchGenerator, _nnx(nnx_ports.Generator), "4,10", """
leaky: activation: relu
sigmoid: activation: tanh
"""),
]  # fmt: skip
UNUSUAL = [
    Case("patches and a folded norm", unusual.TorchSmall, unusual.Patches, _SMALL),
    Case("channels first", unusual.TorchSmall, unusual.ChannelsFirst, _SMALL),
    Case("single precision", unusual.TorchSmall, unusual.SinglePrecision, _SMALL),
    Case("remat and DenseGeneral", unusual.TorchSmall, unusual.Remat, _SMALL),
    Case("an LSTM by hand", sequences.TorchLSTM, unusual.OwnCell, "4,7:int"),
    Case("packed attention", unusual.StillViT, unusual.PackedViT, "3,3,16,16"),
    Case("modules in a list", images.TorchResNet, unusual.OtherOrder, _SMALL),
    Case("flattened channels first", images.TorchVGG, lambda: images.VGG(mistake="chw"), _SMALL),
    Case("one mask for all heads", sequences.TorchViT, lambda: sequences.ViT(mistake="shared_mask"), "3,3,16,16"),
    Case("unflipped kernels", images.TorchUNet, lambda: images.UNet(mistake="unflipped"), "2,3,16,16"),
]


def _classes(**options):
    return lambda logits, labels: F.cross_entropy(logits, labels, **options)


def _optax_classes(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def _mlp(name, causes, **options) -> Case:
    return Case(name, sequences.TorchMLP, sequences.MLP, "6,9", causes, **options)


LOSSES = [
    _mlp("loss", (), loss=(_classes(), lambda logits, labels: _optax_classes(logits, labels).mean())),
    _mlp("loss sum", ("loss_reduction",), loss=(_classes(), lambda x, y: _optax_classes(x, y).sum())),
    _mlp(
        "loss smoothing",
        ("label_smoothing",),
        loss=(_classes(label_smoothing=0.1), lambda x, y: _optax_classes(x, y).mean()),
    ),
    _mlp(
        "loss ignored", ("ignored_labels",), loss=(_classes(ignore_index=1), lambda x, y: _optax_classes(x, y).mean())
    ),
    _mlp(
        "loss half",
        ("loss_half",),
        loss=(
            lambda x, y: F.mse_loss(x, F.one_hot(y, 4).double()),
            lambda x, y: optax.l2_loss(x, jax.nn.one_hot(y, 4, dtype=x.dtype)).mean(),
        ),
    ),
    _mlp(
        "loss softmax twice",
        ("softmax_twice",),
        loss=(_classes(), lambda x, y: _optax_classes(nnx.softmax(x), y).mean()),
    ),
]


def _sgd(**options):
    return lambda parameters: torch.optim.SGD(parameters, lr=0.1, **options)


def _adam(kind=torch.optim.Adam, **options):
    return lambda parameters: kind(parameters, lr=1e-3, **options)


def _tree_mask(params):
    return jax.tree.map(lambda x: x.ndim > 1, params)


OPTIMIZERS = [
    _mlp(
        "sgd",
        (),
        optimizers=(
            _sgd(momentum=0.9, weight_decay=1e-3),
            lambda: optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(0.1, 0.9)),
        ),
    ),
    _mlp("sgd momentum", ("momentum",), optimizers=(_sgd(momentum=0.9), optax.sgd(0.1, 0.99))),
    _mlp("sgd nesterov", ("nesterov",), optimizers=(_sgd(momentum=0.9), optax.sgd(0.1, 0.9, nesterov=True))),
    _mlp(
        "sgd decay after",
        ("decay_coupling",),
        optimizers=(
            _sgd(momentum=0.9, weight_decay=1e-2),
            lambda: optax.chain(optax.trace(0.9), optax.add_decayed_weights(1e-2), optax.scale(-0.1)),
        ),
    ),
    _mlp(
        "sgd decay mask",
        ("decay_mask",),
        optimizers=(
            _sgd(weight_decay=1e-2),
            lambda: optax.chain(optax.add_decayed_weights(1e-2, _tree_mask), optax.sgd(0.1)),
        ),
    ),
    _mlp(
        "sgd dampening",
        ("dampening",),
        optimizers=(_sgd(momentum=0.9), lambda: optax.chain(optax.ema(0.9, debias=False), optax.scale(-0.1))),
    ),
    _mlp(
        "sgd clip norm",
        ("clipping",),
        optimizers=(_sgd(), lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1))),
    ),
    _mlp("sgd clip value", ("clipping",), optimizers=(_sgd(), lambda: optax.chain(optax.clip(0.5), optax.sgd(0.1)))),
    _mlp(
        "adam decoupled",
        ("decay_coupling",),
        optimizers=(_adam(weight_decay=1e-2), optax.adamw(1e-3, weight_decay=1e-2)),
    ),
    _mlp("adamw default decay", ("decay",), optimizers=(_adam(torch.optim.AdamW), optax.adamw(1e-3))),
    _mlp("adam betas", ("betas",), optimizers=(_adam(), optax.adam(1e-3, b2=0.99))),
    _mlp("adam epsilon", ("optimizer_epsilon",), optimizers=(_adam(), optax.adam(1e-3, eps=1e-6))),
    _mlp(
        "adagrad",
        ("accumulator", "optimizer_epsilon"),
        optimizers=(lambda p: torch.optim.Adagrad(p, lr=0.01, eps=1e-7), optax.adagrad(0.01)),
    ),
    _mlp(
        "rmsprop",
        ("decay_rate", "optimizer_epsilon"),
        optimizers=(lambda p: torch.optim.RMSprop(p, lr=1e-3), optax.rmsprop(1e-3)),
    ),
]


def _step(optimizer):
    return torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.5)


SCHEDULES = [
    _mlp(
        "schedule unit",
        ("schedule_unit",),
        schedules=(_step, optax.exponential_decay(0.1, 5, 0.5, staircase=True)),
        steps_per_epoch=4,
    ),
    _mlp(
        "schedule continuous",
        ("schedule_unit",),
        schedules=(_step, optax.exponential_decay(0.1, 20, 0.5)),
        steps_per_epoch=4,
    ),
    _mlp(
        "schedule late",
        ("schedule_shift",),
        schedules=(_step, lambda u: 0.1 * 0.5 ** ((max(u - 1, 0) // 4) // 5)),
        steps_per_epoch=4,
    ),
    _mlp("schedule missing", ("schedule_missing",), schedules=(_step, lambda u: 0.1), steps_per_epoch=4),
]

CASES = [*NETWORKS, *UNUSUAL, *LOSSES, *OPTIMIZERS, *SCHEDULES]
