"""What a PyTorch model computes: every call of a torch function in its forward pass, with its arguments and result.

A `TorchFunctionMode` sees each call, whether a module makes it (`nn.Conv2d` calls `conv2d`) or the model's own forward
does (`torch.cat`, `x + y`). It can also answer a call in another way: so a copy of the model is changed at one place,
with autograd running through the change. Attention is spelt out into the calls that it consists of.
"""

import dis
import itertools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from cifar_jax.errors import InputError
from cifar_jax.parity.comparison.fingerprints import Fingerprint, fingerprint
from cifar_jax.parity.comparison.jaxpr_values import Source

# Changes a call: takes the function and its arguments by name, gives back the result.
Change = Callable[["Call", dict[str, Any]], Any]


class Call(NamedTuple):
    """One call of a torch function.

    index: its number in the order of execution.
    name: the function ("conv2d", "add").
    function: to call it again.
    arguments: by name, as `bind` names them; tensors are those of the run.
    output: its result, or the first tensor of several; detached.
    extra: further tensors that it gave or changed, by name ("running_mean").
    print: fingerprint of the output.
    module, kind: path and class of the innermost module that made the call ("layer1.0.bn1", "BatchNorm2d").
    source: the line of the user's file; None where there is none.
    inputs: numbers of the calls whose results it takes; negative ones are the model's inputs.
    parameters: names of the parameters and buffers that it takes, by argument ("weight").
    on_input: whether the result depends on the model's inputs.
    live: the output with its graph, for gradients.
    before: copies of the arguments that the call changes in place (running statistics), by name.
    positional: how many of the arguments were given by position.
    earlier: the calls of the run so far, for a change that takes one of their results.
    """

    index: int
    name: str
    function: Callable
    arguments: dict[str, Any]
    output: torch.Tensor
    extra: dict[str, torch.Tensor]
    print: Fingerprint
    module: str
    kind: str
    source: Source | None
    inputs: tuple[int, ...]
    parameters: dict[str, str]
    on_input: bool
    live: torch.Tensor
    before: dict[str, torch.Tensor]
    positional: int
    earlier: Sequence["Call"]

    @property
    def array(self) -> np.ndarray:
        """The output as a NumPy array."""
        return self.output.numpy()


class Run(NamedTuple):
    """A forward pass: its calls, the model's results, and which calls gave them; no results where it ended early."""

    calls: list[Call]
    outputs: list[torch.Tensor]
    produced_by: list[int]


class Stop(Exception):
    """Ends a run early, with the calls so far."""


_NAMES = {
    "conv1d": "input weight bias stride padding dilation groups",
    "conv_transpose1d": "input weight bias stride padding output_padding groups dilation",
    "linear": "input weight bias",
    "bilinear": "input1 input2 weight bias",
    "batch_norm": "input running_mean running_var weight bias training momentum eps",
    "layer_norm": "input normalized_shape weight bias eps",
    "rms_norm": "input normalized_shape weight eps",
    "group_norm": "input num_groups weight bias eps",
    "instance_norm": "input running_mean running_var weight bias use_input_stats momentum eps",
    "local_response_norm": "input size alpha beta k",
    "normalize": "input p dim eps out",
    "embedding": "input weight padding_idx max_norm norm_type scale_grad_by_freq sparse",
    "prelu": "input weight",
    "relu": "input inplace",
    "relu6": "input inplace",
    "silu": "input inplace",
    "mish": "input inplace",
    "hardswish": "input inplace",
    "hardsigmoid": "input inplace",
    "gelu": "input approximate",
    "leaky_relu": "input negative_slope inplace",
    "elu": "input alpha inplace",
    "celu": "input alpha inplace",
    "selu": "input inplace",
    "hardtanh": "input min_val max_val inplace",
    "softplus": "input beta threshold",
    "sigmoid": "input",
    "tanh": "input",
    "glu": "input dim",
    "logsigmoid": "input",
    "softmax": "input dim dtype",
    "log_softmax": "input dim dtype",
    "softmin": "input dim",
    "max_pool1d": "input kernel_size stride padding dilation ceil_mode return_indices",
    "avg_pool1d": "input kernel_size stride padding ceil_mode count_include_pad divisor_override",
    "adaptive_avg_pool1d": "input output_size",
    "adaptive_max_pool1d": "input output_size return_indices",
    "interpolate": "input size scale_factor mode align_corners recompute_scale_factor antialias",
    "pixel_shuffle": "input upscale_factor",
    "pixel_unshuffle": "input downscale_factor",
    "dropout": "input p training inplace",
    "alpha_dropout": "input p training inplace",
    "feature_dropout": "input p training inplace",
    "dropout1d": "input p training inplace",
    "dropout2d": "input p training inplace",
    "dropout3d": "input p training inplace",
    "pad": "input pad mode value",
    "flatten": "input start_dim end_dim",
    "cat": "tensors dim",
    "concat": "tensors dim",
    "stack": "tensors dim",
    "add": "input other alpha",
    "sub": "input other alpha",
    "mul": "input other",
    "div": "input other",
    "rsub": "input other alpha",
    "pow": "input exponent",
    "matmul": "input other",
    "bmm": "input other",
    "mean": "input dim keepdim",
    "sum": "input dim keepdim",
    "amax": "input dim keepdim",
    "max": "input dim keepdim",
    "var": "input dim unbiased keepdim",
    "std": "input dim unbiased keepdim",
    "chunk": "input chunks dim",
    "split": "input split_size dim",
    "permute": "input dims",
    "transpose": "input dim0 dim1",
    "roll": "input shifts dims",
    "flip": "input dims",
    "scaled_dot_product_attention": "query key value attn_mask dropout_p is_causal scale enable_gqa",
    "lstm": "input hx weights has_biases num_layers dropout training bidirectional batch_first",
    "gru": "input hx weights has_biases num_layers dropout training bidirectional batch_first",
    "rnn_tanh": "input hx weights has_biases num_layers dropout training bidirectional batch_first",
    "rnn_relu": "input hx weights has_biases num_layers dropout training bidirectional batch_first",
    "cross_entropy": "input target weight size_average ignore_index reduce reduction label_smoothing",
    "nll_loss": "input target weight size_average ignore_index reduce reduction",
    "mse_loss": "input target size_average reduce reduction weight",
    "l1_loss": "input target size_average reduce reduction",
    "smooth_l1_loss": "input target size_average reduce reduction beta",
    "huber_loss": "input target reduction delta",
    "binary_cross_entropy": "input target weight size_average reduce reduction",
    "binary_cross_entropy_with_logits": "input target weight size_average reduce reduction pos_weight",
    "kl_div": "input target size_average reduce reduction log_target",
    "clamp": "input min max",
    "masked_fill": "input mask value",
    "multi_head_attention_forward": (
        "query key value embed_dim_to_check num_heads in_proj_weight in_proj_bias bias_k bias_v "
        "add_zero_attn dropout_p out_proj_weight out_proj_bias training key_padding_mask need_weights attn_mask "
        "use_separate_proj_weight q_proj_weight k_proj_weight v_proj_weight static_k static_v "
        "average_attn_weights is_causal"
    ),
}
for _name in ("conv", "conv_transpose", "max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool"):
    for _rank in (2, 3):
        _NAMES[f"{_name}{_rank}d"] = _NAMES[f"{_name}1d"]
_OTHER_NAMES = {
    "__add__": "add",
    "__radd__": "add",
    "__iadd__": "add",
    "__sub__": "sub",
    "__isub__": "sub",
    "__mul__": "mul",
    "__rmul__": "mul",
    "__imul__": "mul",
    "__truediv__": "div",
    "__itruediv__": "div",
    "true_divide": "div",
    "divide": "div",
    "multiply": "mul",
    "subtract": "sub",
    "__rsub__": "rsub",
    "__matmul__": "matmul",
    "__pow__": "pow",
    "concat": "cat",
    "concatenate": "cat",
    "_threshold": "threshold",
}
# Functions that look at tensors, or that make no new values.
_IGNORED = {
    "__get__",
    "__set__",
    "size",
    "dim",
    "ndimension",
    "numel",
    "is_floating_point",
    "is_complex",
    "requires_grad_",
    "retain_grad",
    "is_contiguous",
    "stride",
    "data_ptr",
    "item",
    "tolist",
    "__len__",
    "backward",
    "detach_",
    "type",
    "element_size",
    "is_nonzero",
    "__bool__",
    "__repr__",
    "__format__",
    "_set_grad_enabled",
    "_is_view",
    "nelement",
    "register_hook",
    "__index__",
    "__int__",
    "__float__",
    "is_pinned",
    "get_device",
    "new_zeros",
    "zeros_like",
    "ones_like",
    "full_like",
    "empty_like",
    "new_ones",
    "new_full",
    "new_empty",
    "unbind_",
}
_WRAPPERS = ("contextlib.py", "functools.py", "/beartype/", "/jaxtyping/")
_TORCH_FILES = __file__.rpartition("parity")[0] + "parity", torch.__path__[0]


def bind(name: str, args: Sequence, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by name; those of functions that are not known by name are called "0", "1", ..."""
    names = _NAMES.get(name, "").split()
    bound = {names[i] if i < len(names) else str(i): value for i, value in enumerate(args)}
    return bound | dict(kwargs)


def call_again(call: Call, arguments: Mapping[str, Any]) -> Any:
    """Calls the same function with other arguments, given by name."""
    known = _NAMES.get(call.name, "").split()
    order = [*known, *(str(i) for i in range(len(known), 20))]
    positional = list(itertools.takewhile(lambda name: name in arguments, order))[: call.positional]
    rest = {name: value for name, value in arguments.items() if name not in positional}
    return call.function(*(arguments[name] for name in positional), **rest)


class Recorder(TorchFunctionMode):
    """Records all calls made under it, and changes those that it is told to change.

    Args:
      names: name of each parameter and buffer by its `id`.
      changes: what to do at which call, instead of the call.
      masks: the port's dropout masks; those whose results `known` recognises are used for torch's dropouts.
      known: whether the port has a value with this fingerprint.
      stop_after: the last call that is wanted; None for all.
    """

    def __init__(
        self,
        names: Mapping[int, str],
        changes: Mapping[int, Change] | None = None,
        masks: Sequence[np.ndarray] = (),
        known: Callable[[Fingerprint], bool] = lambda print_: False,
        stop_after: int | None = None,
        replay: Sequence[Call] = (),
    ):
        super().__init__()
        self.calls: list[Call] = []
        self.modules: list[tuple[str, str]] = [("", "")]
        self._names, self._changes, self._stop_after = names, changes or {}, stop_after
        self._replay = replay
        self._masks, self._known = list(masks), known
        self._makers: dict[int, int] = {}
        self._from_parameters: dict[int, tuple[str, ...]] = {}
        self._alive: list[Any] = []
        self._blocked = 0

    def add_input(self, tensor: torch.Tensor, number: int) -> None:
        """Says that a tensor is one of the model's inputs; numbers are negative."""
        self._makers[id(tensor)] = number
        self._alive.append(tensor)

    def maker(self, tensor: torch.Tensor) -> int | None:
        """The number of the call that gave a tensor."""
        return self._makers.get(id(tensor))

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = _OTHER_NAMES.get(getattr(function, "__name__", ""), getattr(function, "__name__", ""))
        if name in _IGNORED or (name.startswith("_") and name != "__getitem__"):
            return function(*args, **kwargs)
        if name == "multi_head_attention_forward":
            with self:
                return attention(**bind(name, args, kwargs))
        if kwargs.get("inplace"):
            kwargs["inplace"] = False
        if name in _AUGMENTED and _is_augmented_assignment():
            # The name on its left gets the result, so that it need not be the same tensor.
            name = name[:-1]
            function = getattr(torch, name)
        if (
            name.endswith("_")
            and not name.startswith("_")
            and hasattr(torch, name[:-1])
            and name[:-1] in _NAMES
            and name != "add_"
        ):
            name = name[:-1]
        arguments = bind(name, args, kwargs)
        if name == "hardtanh" and (arguments.get("min_val"), arguments.get("max_val")) in ((0, 6), (0.0, 6.0)):
            name = "relu6"
        return self._record(name, function, arguments, args, kwargs)

    def _record(self, name, function, arguments, args, kwargs):
        tensors = list(_tensors(arguments))
        if "inplace" in arguments:
            arguments["inplace"] = False
        makers = [self._makers[id(t)] for t in tensors if id(t) in self._makers]
        parameters = {}
        for argument, value in arguments.items():
            for position, tensor in enumerate(_tensors({argument: value})):
                known_by = self._names.get(id(tensor)) or "+".join(self._from_parameters.get(id(tensor), ()))
                if known_by:
                    key = argument if not isinstance(value, (list, tuple)) else f"{argument}.{position}"
                    parameters[key] = known_by
        if not makers and not parameters and not tensors:
            output = function(*args, **kwargs)
            self._keep(output)
            return output
        if not makers and parameters and not any(id(t) in self._makers for t in tensors):
            # Made of parameters alone: a transposed, sliced or normalised weight.
            output = function(*args, **kwargs)
            made_of = tuple(sorted({part for names in parameters.values() for part in names.split("+")}))
            for tensor in _tensors({"": output}):
                if id(tensor) not in self._names:
                    self._from_parameters[id(tensor)] = made_of
            self._keep(output)
            return output
        if not makers:
            output = function(*args, **kwargs)
            self._keep(output)
            return output
        index = len(self.calls)
        module, kind = self.modules[-1]
        source = _user_source()
        before = {
            n: arguments[n].detach().clone()
            for n in ("running_mean", "running_var")
            if isinstance(arguments.get(n), torch.Tensor)
        }
        draft = Call(
            index,
            name,
            function,
            arguments,
            torch.empty(0),
            {},
            fingerprint(np.empty(0)),
            module,
            kind,
            source,
            tuple(dict.fromkeys(makers)),
            parameters,
            True,
            torch.empty(0),
            before,
            len(args),
            self.calls,
        )
        if index < len(self._replay) and index not in self._changes:
            result = self._replay_result(draft, self._replay[index])
        elif index in self._changes:
            result = self._changes[index](draft, arguments)
        elif name in _DROPOUTS:
            result = self._dropout(draft, arguments)
        elif name == "scaled_dot_product_attention" and arguments.get("dropout_p", 0.0) > 0:
            result = self._attention(draft, arguments)
        else:
            result = function(*args, **kwargs)
        outputs = list(_tensors({"": result}))
        if not outputs:
            return result
        extra = {f"output{i}": t.detach().clone() for i, t in enumerate(outputs[1:], 1)}
        if name in ("batch_norm", "instance_norm"):
            extra |= {n: arguments[n].detach().clone() for n in before}
        kept = outputs[0].detach()
        kept = kept.clone() if _shares_memory(outputs[0], tensors) else kept
        if outputs[0].requires_grad and outputs[0].grad_fn is not None:
            outputs[0].retain_grad()
        for tensor in outputs:
            self._makers[id(tensor)] = index
        self._keep(result)
        self.calls.append(
            draft._replace(
                output=kept,
                extra=extra,
                live=outputs[0],
                print=fingerprint(kept.numpy()) if kept.dtype != torch.bfloat16 else fingerprint(kept.float().numpy()),
            )
        )
        if self._stop_after is not None and index >= self._stop_after:
            raise Stop
        return result

    def _replay_result(self, draft: Call, past: Call):
        if past.extra or not isinstance(past.live, torch.Tensor) or past.name in _SEVERAL:
            return call_again(draft, draft.arguments)  # it gives several results, or changes statistics in place
        return past.output.clone()

    def _dropout(self, call: Call, arguments):
        """Dropout with the mask that the port drew, where one fits; else with torch's own."""
        x, rate = arguments["input"], arguments.get("p", 0.5)
        if not arguments.get("training", call.name != "dropout") or rate == 0:
            return x.clone()
        for place, mask in enumerate(self._masks):
            whole = call.name in ("dropout", "alpha_dropout")
            if mask.size != (x.numel() if whole else x.shape[0] * x.shape[1]):
                continue  # a mask for more than one element is another kind of dropout
            for candidate in fitting_masks(mask, x):
                result = x * candidate / (1 - rate)
                if self._known(fingerprint(result.detach().numpy())):
                    del self._masks[place]
                    return result
        return call_again(call, arguments)

    def _attention(self, call: Call, arguments):
        """Attention with the port's mask of dropout, where one fits; else with torch's own."""
        rate = arguments.get("dropout_p", 0.0)
        still = {**arguments, "dropout_p": 0.0}
        size = math.prod(arguments["query"].shape[:-1]) * arguments["key"].shape[-2]
        for place, mask in enumerate(self._masks if rate else ()):
            if mask.size != size:
                continue
            for candidate in fitting_masks(mask, arguments["query"] @ arguments["key"].transpose(-1, -2)):
                result = scaled_attention(**still, weight=candidate / (1 - rate))
                if self._known(fingerprint(result.detach().numpy())):
                    del self._masks[place]
                    return result
        return call_again(call, arguments)

    def _keep(self, value):
        self._alive.append(value)


_DROPOUTS = {"dropout", "feature_dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout"}
_SEVERAL = {"chunk", "split", "lstm", "gru", "rnn_tanh", "rnn_relu", "unbind", "max", "min", "tensor_split", "topk"}


def fitting_masks(mask: np.ndarray, x: torch.Tensor) -> list[torch.Tensor]:
    """A mask of the port in all orders of its axes that broadcast to the shape of x."""
    found = []
    if mask.size > x.numel():
        return found
    orders = [tuple(range(mask.ndim))]
    if mask.ndim > 2:
        orders.insert(0, (0, mask.ndim - 1, *range(1, mask.ndim - 1)))
        orders += [order for order in itertools.permutations(range(mask.ndim)) if order not in orders]
    for order in orders:
        shape = tuple(mask.shape[axis] for axis in order)
        if len(shape) == x.ndim and all(a in (1, b) for a, b in zip(shape, x.shape, strict=True)):
            found.append(torch.from_numpy(np.array(mask.transpose(order))).to(x.dtype))
    if not found and mask.size == x.numel():
        found.append(torch.from_numpy(np.array(mask.reshape(x.shape))).to(x.dtype))
    return found


_AUGMENTED = ("add_", "sub_", "mul_", "div_")


def _is_augmented_assignment() -> bool:
    """Whether the user's line is `x += y` or the like, not `x.add_(y)`: by the instruction that makes the call."""
    frame = _user_frame()
    return frame is not None and dis.opname[frame.f_code.co_code[frame.f_lasti]] in _AUGMENTED_OPERATIONS


_AUGMENTED_OPERATIONS = ("BINARY_OP", "INPLACE_ADD", "INPLACE_SUBTRACT", "INPLACE_MULTIPLY", "INPLACE_TRUE_DIVIDE")


def _shares_memory(output: torch.Tensor, inputs: Sequence[torch.Tensor]) -> bool:
    return any(output is each or output.data_ptr() == each.data_ptr() for each in inputs)


def _tensors(tree: Any):
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for each in tree.values():
            yield from _tensors(each)
    elif isinstance(tree, (list, tuple)):
        for each in tree:
            yield from _tensors(each)


def _user_source() -> Source | None:
    frame = _user_frame()
    return None if frame is None else Source(frame.f_code.co_filename, frame.f_lineno)


def _user_frame():
    """The innermost frame that is neither torch's nor this package's."""
    frame = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith((*_TORCH_FILES, "<")) and not any(each in file for each in _WRAPPERS):
            return frame
        frame = frame.f_back
    return None


def run_model(
    model: torch.nn.Module,
    inputs: Sequence[torch.Tensor],
    *,
    train: bool,
    grad: bool = False,
    changes: Mapping[int, Change] | None = None,
    masks: Sequence[np.ndarray] = (),
    known: Callable[[Fingerprint], bool] = lambda print_: False,
    stop_after: int | None = None,
    replay: Sequence[Call] = (),
    call: Mapping[str, Mapping] | None = None,
    after: Callable | None = None,
) -> Run:
    """Runs a model's forward pass and records it.

    Args:
      model: the model; its mode is set, and its buffers may change.
      inputs: its inputs.
      train: training or evaluation mode.
      grad: whether autograd runs.
      changes, masks, known, stop_after, replay: as `Recorder` takes them.
      call: keyword arguments by mode, as in `flax_side.open_port`.
      after: called with the model's result, recorded too; a loss.
    """
    names = {id(tensor): name for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    recorder = Recorder(names, changes, masks, known, stop_after, replay)
    model.train(train)
    paths: dict[int, str] = {}
    for path, module in model.named_modules():
        paths.setdefault(id(module), path)
    handles = []

    def enter(module, args):
        recorder.modules.append((paths.get(id(module), ""), type(module).__name__))

    def leave(module, args, result):
        recorder.modules.pop()

    for module in model.modules():
        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave, always_call=True))
    fresh = [tensor.detach().clone() for tensor in inputs]
    for number, tensor in enumerate(fresh):
        if tensor.is_floating_point() and grad:
            tensor.requires_grad_(True)
        recorder.add_input(tensor, -1 - number)
    torch.manual_seed(0)
    try:
        with recorder, torch.set_grad_enabled(grad):
            result = model(*fresh, **dict((call or {}).get("train" if train else "eval", {})))
            if after is not None:
                result = after(result)
    except Stop:
        return Run(recorder.calls, [], [])
    except Exception:
        if not changes:
            raise
        # A change may give a shape that a later call cannot take; what came before still says something.
        return Run(recorder.calls, [], [])
    finally:
        for handle in handles:
            handle.remove()
    outputs = list(_tensors(_by_key(result)))
    return Run(recorder.calls, outputs, [_maker(recorder, output) for output in outputs])


def _by_key(tree: Any) -> Any:
    """A tree whose dicts are in the order of their keys, as JAX has them."""
    if isinstance(tree, Mapping):
        return {key: _by_key(tree[key]) for key in sorted(tree, key=str)}
    return [_by_key(each) for each in tree] if isinstance(tree, (list, tuple)) else tree


def _maker(recorder: Recorder, tensor: torch.Tensor) -> int:
    number = recorder.maker(tensor)
    if number is None and tensor.grad_fn is None and not tensor.is_floating_point():
        raise InputError(
            "A result of the torch model does not depend on its inputs, so that there is nothing to compare."
        )
    return -1_000 if number is None else number  # made of parameters alone


def attention(
    query,
    key,
    value,
    embed_dim_to_check,
    num_heads,
    in_proj_weight,
    in_proj_bias,
    bias_k,
    bias_v,
    add_zero_attn,
    dropout_p,
    out_proj_weight,
    out_proj_bias,
    training=True,
    key_padding_mask=None,
    need_weights=True,
    attn_mask=None,
    use_separate_proj_weight=False,
    q_proj_weight=None,
    k_proj_weight=None,
    v_proj_weight=None,
    static_k=None,
    static_v=None,
    average_attn_weights=True,
    is_causal=False,
):
    """`torch.nn.functional.multi_head_attention_forward` by the calls it consists of.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.MultiheadAttention.html. Inputs are
    `[length, batch, width]`, or `[length, width]`.
    """
    if bias_k is not None or bias_v is not None or add_zero_attn or static_k is not None or static_v is not None:
        raise InputError("nn.MultiheadAttention with add_bias_kv or add_zero_attn is not handled.")
    batched = query.dim() == 3
    if not batched:
        query, key, value = query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)
    length, batch, width = query.shape
    weights = (q_proj_weight, k_proj_weight, v_proj_weight) if use_separate_proj_weight else in_proj_weight.chunk(3)
    biases = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
    q, k, v = (F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))

    def heads(x):
        return x.view(x.shape[0], batch, num_heads, width // num_heads).permute(1, 2, 0, 3)

    q, k, v = heads(q), heads(k), heads(v)
    mask = attn_mask
    if mask is not None and mask.dim() == 3:
        mask = mask.view(batch, num_heads, *mask.shape[1:])
    if key_padding_mask is not None:
        padding = key_padding_mask.view(batch, 1, 1, -1)
        if padding.dtype == torch.bool:
            padding = torch.zeros(padding.shape, dtype=q.dtype).masked_fill(padding, -math.inf)
        mask = padding if mask is None else _additive(mask, q.dtype) + padding
    mask = None if mask is None else _additive(mask, q.dtype)
    y = F.scaled_dot_product_attention(q, k, v, mask, dropout_p if training else 0.0)
    y = y.permute(2, 0, 1, 3).reshape(length, batch, width)
    y = F.linear(y, out_proj_weight, out_proj_bias)
    if not batched:
        y = y.squeeze(1)
    if not need_weights:
        return y, None
    with torch.no_grad():
        scores = (q @ k.transpose(-1, -2)) / math.sqrt(width // num_heads)
        weights = torch.softmax(scores if mask is None else scores + mask, -1)
        weights = weights.mean(1) if average_attn_weights else weights
    return y, weights


def _additive(mask, dtype):
    # MultiheadAttention's boolean masks say where not to look.
    return torch.zeros(mask.shape, dtype=dtype).masked_fill(mask, -math.inf) if mask.dtype == torch.bool else mask


def scaled_attention(
    query,
    key,
    value,
    attn_mask=None,
    dropout_p=0.0,
    is_causal=False,
    scale=None,
    enable_gqa=False,
    *,
    axis=-1,
    weight=None,
):
    """`scaled_dot_product_attention` written out.

    Args:
      query, key, value, attn_mask, is_causal, scale: as torch takes them; dropout_p and enable_gqa are not used.
      axis: over which the softmax is taken.
      weight: what the attention weights are multiplied by, such as a mask of dropout over the share that stays.
    """
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = query @ key.transpose(-1, -2) * scale
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    weights = torch.softmax(scores, axis)
    return (weights if weight is None else weights * weight) @ value
