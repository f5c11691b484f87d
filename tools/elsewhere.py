"""A GPU that is not there: tensors on PyTorch's device "meta", which has shapes and no numbers.

Inside `with Elsewhere()` our code runs as on a GPU and computes nothing, so the paper's sizes take seconds.
What would end there, or wait there, raises Stray with the line of ours that does it:

    mixing       one operation on tensors of both devices (a forgotten device=), or with the CPU's generator
    asking       .item(), .tolist(), .cpu(), bool(), nonzero, an index by a mask: the CPU waits for an answer
    uploading    torch.tensor(..., device=), .to(device): a GPU finishes all that it was given before

ALLOWED names who may ask and upload, and why. Bytes of live tensors are counted. Stand-ins: fused attention
is the memory-efficient kernel, autocast casts what CUDA's does, Adam is not fused, numbers asked for or saved
are drawn at random. No kernel runs: that a GPU computes the right numbers is not shown.

Test: pytest tests/test_elsewhere.py
"""
import sys
import weakref
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from tools import HERE

DEVICE = torch.device("meta")
DRAWN = "the loss comes back, once a step; the jitter goes there, drawn on the CPU for all devices alike"
PIXELS = "the pixels of an image go there, once"
ALLOWED = {     # file and function of ours: why it may ask, or upload
    "07_train.main": "the model goes there, once",
    "08_eval.main": "the model goes there, once",
    "07_train.training_step": DRAWN,
    "fast/step.__call__": DRAWN,
    "fast/step.batch_gradients": DRAWN,
    "07_train.train": "a step's batch goes there; its gradient's norm comes back, to stop at NaN",
    "01_data.rays": "the inverse of K is checked, once a piece of rays",
    "01_data.to": "views go there, once for a step or a set of source views",
    "07_train.render_image": PIXELS,
    "fast/render.render_image": PIXELS,
    "08_eval.render_views": "a target's camera goes there, its image comes back",
    "08_eval.fly_through": "a camera goes there, its image comes back",
    "support/checkpoints.write_state": "weights are checked and written",
    "support/checkpoints.resume_optimiser": "Adam's moments go there, once",
    "fast/choice.agree": "fast/ and the lessons are compared on the CPU, once",
    "tools/memory.job": "what is measured goes there, once",
}
ASKING = {"item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__",
          "__format__", "__contains__"}
UPLOADING = {"tensor", "as_tensor", "asarray", "new_tensor"}
WAITING = {"nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive", "bincount",
           "equal", "is_nonzero", "_local_scalar_dense",          # the CPU needs the answer, or its shape
           "_linalg_check_errors"}                                # torch.linalg.inv asks whether it went well
BY_INDEX = {"index", "index_put", "index_put_", "_index_put_impl_"}       # the same, by a mask
COPIES = {"_to_copy", "copy_"}                                    # seen, or made, by .to and .cpu


class Stray(BaseException):
    """What a GPU could not do, or would wait for, and where. No `except Exception` may hide it."""


def place() -> tuple[str, int]:
    """The innermost function of ours that is running, as in ALLOWED, and its line."""
    frame = sys._getframe(1)
    while frame is not None:
        path, function = Path(frame.f_code.co_filename), frame.f_code.co_name
        ours = path.is_relative_to(HERE) and "site-packages" not in path.parts and path != Path(__file__)
        if ours and not function.startswith("<"):
            return f"{path.relative_to(HERE).with_suffix('').as_posix()}.{function}", frame.f_lineno
        frame = frame.f_back
    return "nobody", 0


def stray(what: str) -> Stray:
    """The error that says what is done, and where."""
    return Stray("{}, line {}: {}".format(*place(), what))


def check(what: str) -> None:
    """Stray unless the function of ours that is running may do this."""
    if place()[0] not in ALLOWED:
        raise stray(what)


def tensors(*trees) -> list[Tensor]:
    """All tensors in nested arguments."""
    return [leaf for leaf in tree_flatten(trees)[0] if isinstance(leaf, Tensor)]


def answer(x: Tensor) -> Tensor:
    """What a tensor elsewhere may hold: small numbers, as weights are; whole ones, and conditions, are 1."""
    return (torch.randn(x.shape) / 10 if x.dtype.is_floating_point else torch.ones(x.shape)).to(x.dtype)


def destination(args, kwargs) -> torch.device | None:
    """Where x.to(...), or a factory, puts a tensor; None where it does not say."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            return value.device
        if isinstance(value, (str, torch.device)):
            return torch.device(value)
    return None


class Bridge(TorchFunctionMode):
    """Sees what crosses from one device to the other; answers for the device that is not there."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        x = args[0] if args and isinstance(args[0], Tensor) else None
        if func is F.scaled_dot_product_attention and x.is_meta:
            return fused_attention(*args, **kwargs)
        if name in UPLOADING and (destination((), kwargs) == DEVICE or x is not None and x.is_meta):
            check(f"{name}(..., device=) uploads numbers of the CPU")
        elif x is not None and name == "to":
            x = self.moved(x, destination(args[1:], kwargs))
            args = x, *args[1:]
        elif x is not None and x.is_meta and name in ASKING:
            check(f".{name}() waits for a number")
            args = answer(x), *args[1:]
        return func(*args, **kwargs)

    def moved(self, x: Tensor, to: torch.device | None) -> Tensor:
        """What .to(device) is called on."""
        if to is None or x.device == to:
            return x
        check(".to(device) uploads a tensor" if to == DEVICE else ".to('cpu') waits for a tensor")
        return answer(x) if x.is_meta else x


class Watch(TorchDispatchMode):
    """Sees every operation, backward ones too: refuses what mixes devices or waits, and counts bytes."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, func._schema.name.split("::")[1]
        given = tensors(args, kwargs)
        if any(x.is_meta for x in given) or kwargs.get("device") == DEVICE:
            self.refuse(name, given, args, kwargs)
        out = func(*args, **kwargs)
        for x in tensors(out):
            if x.is_meta:
                self.count(x)
        return out

    def refuse(self, name: str, given: list[Tensor], args, kwargs) -> None:
        """Stray for what an operation on a GPU's tensors may not be."""
        if name in COPIES:
            return
        if any(not x.is_meta and x.dim() for x in given):                     # PyTorch lets a number pass
            raise stray(f"{name} of tensors on the CPU and elsewhere")
        if any(isinstance(x, torch.Generator) for x in (*args, *kwargs.values())):
            raise stray(f"{name} elsewhere with a generator of the CPU")
        if name in WAITING or name in BY_INDEX and torch.bool in {x.dtype for x in tensors(args[1])}:
            check(f"{name} waits for an answer, or for its shape")

    def count(self, x: Tensor) -> None:
        """A tensor's bytes, in 512s as CUDA gives them, live until its storage is gone."""
        storage = x.untyped_storage()
        key, size = storage._cdata, -(-storage.nbytes() // 512) * 512
        if key not in self.known:
            self.known.add(key)
            weakref.finalize(storage, self.forget, key, size)
            self.live += size
            self.peak = max(self.peak, self.live)

    def forget(self, key: int, size: int) -> None:
        """A storage is gone."""
        self.known.discard(key)
        self.live -= size


# ------------------------------------------------------------------------------------------------ stand-ins

def fused_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor) -> Tensor:
    """The kernel that a GPU takes for F.scaled_dot_product_attention with a mask, and its backward."""
    kernel = torch.ops.aten._scaled_dot_product_efficient_attention
    return kernel(q, k, v, attn_mask, torch.is_grad_enabled())[0]


class Autocast(TorchFunctionMode):
    """torch.autocast's casts, of the operations that S-Ray's networks have."""

    LOWER = {"linear", "conv2d", "matmul", "einsum", "scaled_dot_product_attention"}
    UPPER = {"layer_norm", "group_norm", "softmax", "softplus"}

    def __init__(self, device_type: str, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        dtype = self.dtype if name in self.LOWER else torch.float32 if name in self.UPPER else None

        def cast(x):
            return x.to(dtype) if isinstance(x, Tensor) and x.dtype.is_floating_point else x
        args, kwargs = (args, kwargs or {}) if dtype is None else tree_map(cast, (args, kwargs or {}))
        return func(*args, **kwargs)


class Adam(torch.optim.Adam):
    """The fused Adam: it makes the moments, once, and nothing else."""

    def __init__(self, parameters, fused: bool = False, **settings):
        super().__init__(parameters, **settings)

    def step(self) -> None:
        """Moments where there is a gradient."""
        for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
            if not self.state[p]:
                self.state[p] = {"step": torch.zeros(()), "exp_avg": torch.zeros_like(p),
                                 "exp_avg_sq": torch.zeros_like(p)}


SAVE = torch.save


def save(state, file) -> None:
    """torch.save, with numbers for tensors elsewhere."""
    SAVE(tree_map(lambda x: answer(x) if isinstance(x, Tensor) and x.is_meta else x, state), file)


class Elsewhere(ExitStack):
    """The context in which DEVICE stands for a GPU. watch: its live and peak bytes."""

    def __enter__(self):
        super().__enter__()
        self.enter_context(mock.patch.object(torch, "autocast", Autocast))
        self.enter_context(mock.patch.object(torch.optim, "Adam", Adam))
        self.enter_context(mock.patch.object(torch, "save", save))
        self.watch = self.enter_context(Watch())
        self.enter_context(Bridge())
        return self
