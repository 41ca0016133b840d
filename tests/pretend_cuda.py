"""A pretended GPU: device code runs on a machine without one, under CUDA's rules about devices.

    with PretendCuda() as gpu:
        model = build().to("cuda")                   # parameters on `cuda:0`, each around a CPU tensor
        model(batch.to("cuda")).sum().backward()
    print(*gpu.table("fairchem_crack"), sep="\\n")    # where the host waited for the GPU

How it works: a `PretendTensor` is on `cuda:0` to the dispatcher, autograd and autocast, and holds a CPU tensor. A dispatch
mode runs each operator on the CPU tensors inside its arguments, and counts the calls that make the host wait for a GPU.

What a GPU would refuse raises `DeviceError`, or torch's own error: tensors of two devices in one operator (0-dim CPU tensors
in pointwise ones and CPU indices of a CUDA tensor are allowed, as in torch), a CPU generator for the GPU's random numbers,
`.numpy()`, two dtypes under autocast.

Not pretended: streams, speed, a second GPU, NCCL and DDP's reducer, kernels in CUDA C++ or Triton, rounding and atomics of a
GPU, and pinned memory: a non-blocking copy to the GPU never waits. TorchScript runs without fusion.

Import it before the first backward of the process (autograd then starts a thread for each device), and never on a machine
with a GPU: the import replaces CUDA's device guard. Written for torch 2.4 on 64-bit Linux; `_install_guard` checks what it
relies on.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

CUDA = torch.device("cuda:0")
ANY_DEVICE = {"copy_", "_to_copy", "_foreach_copy_"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
# of 0-dim CPU tensors, beside the operators that torch tags as pointwise
TAKES_SCALARS = {"where", "isclose", "allclose", "masked_fill", "masked_fill_", "fill_", "_foreach_mul_", "_foreach_div_"}
SHAPED_BY_VALUES = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount", "equal"}
COMPILED = {  # operators of C++ extensions that were built without CUDA; fairchem takes no gradient through them
    "torch_scatter": (
        *("segment_sum_coo", "segment_mean_coo", "gather_coo", "segment_sum_csr", "segment_mean_csr", "gather_csr"),
        *("scatter_max", "scatter_min"),
    ),
    "torch_sparse": ("ind2ptr", "ptr2ind"),
}
_active: list[PretendCuda] = []


class DeviceError(RuntimeError):
    """A GPU would refuse this call."""


class _Memory:
    """The share of a tensor in its storage, whose bytes count until the last share is gone."""

    def __init__(self, gpu: PretendCuda, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self.gpu, self.key, self.size = gpu, storage._cdata, storage.nbytes()
        gpu.allocated += 0 if gpu.shares[self.key] else self.size
        gpu.peak = max(gpu.peak, gpu.allocated)
        gpu.shares[self.key] += 1

    def __del__(self) -> None:
        self.gpu.shares[self.key] -= 1
        self.gpu.allocated -= 0 if self.gpu.shares[self.key] else self.size


class PretendTensor(torch.Tensor):
    """A tensor on `cuda:0` whose values are those of the CPU tensor `inner`."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> PretendTensor:
        layout: dict[str, Any] = {"strides": inner.stride(), "storage_offset": inner.storage_offset()}
        wrapper = torch.Tensor._make_wrapper_subclass(cls, inner.size(), **layout, dtype=inner.dtype, device=CUDA)
        wrapper.inner, wrapper.memory = inner, _Memory(_active[-1], inner)
        return wrapper

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if not _active:
            raise DeviceError("a pretended tensor outlived its `PretendCuda`")
        return _active[-1].run(func, args, kwargs or {})

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None  # `Module.to` then keeps the identity of parameters, as with a GPU

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], *_: Any) -> PretendTensor:
        return PretendTensor(inner["inner"])

    def __deepcopy__(self, memo: dict) -> PretendTensor:
        memo[id(self)] = copied = self.detach().clone().requires_grad_(self.requires_grad)
        copied.__dict__.update({name: value for name, value in self.__dict__.items() if name == "_is_param"})
        return copied

    def __reduce_ex__(self, protocol: int) -> Any:
        return self.inner.detach().__reduce_ex__(protocol)  # a file holds the values, and is read onto the CPU

    def numpy(self, *, force: bool = False) -> Any:
        """Refused, as by torch."""
        if not force:
            raise TypeError(
                "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it to host memory first."
            )
        return self.detach().cpu().numpy()

    def tolist(self) -> Any:
        """By way of a copy on the CPU, as in torch."""
        return self.cpu().tolist()

    def new_tensor(self, data: Any, **options: Any) -> Tensor:
        """Of numbers that may be on the GPU."""
        return super().new_tensor(_numbers(data), **options)


def _numbers(data: Any) -> Any:
    """Nested lists, with the values of the pretended tensors in them, which torch would read past the dispatcher."""
    if isinstance(data, (list, tuple)):
        return [_numbers(value) for value in data]
    return data.tolist() if isinstance(data, PretendTensor) else data


class PretendCuda(TorchDispatchMode):
    """Within it there is one GPU, `cuda:0`.

    Attributes:
        stalls: how often the host waited for the GPU, by what it called and the lines of `watched` packages on the stack,
            innermost first.
        calls: operators that ran on the GPU, by name; each is one kernel or more.
        allocated, peak: bytes of all tensors on the GPU, now and at most, without the temporary ones inside an operator.

    Args:
        watched: packages whose lines are named.
    """

    def __init__(self, *watched: str) -> None:
        super().__init__()
        self._mode_key = torch._C._TorchDispatchModeKey.FAKE  # with which torch leaves out the initialisation of CUDA
        self.watched = watched or ("fairchem_crack", "fairchem")
        self.stalls: Counter[tuple[str, tuple[str, ...]]] = Counter()
        self.calls: Counter[str] = Counter()
        self.shares: Counter[int] = Counter()  # tensors on each storage
        self.allocated = self.peak = self._quiet = 0
        self._random = torch.Generator().manual_seed(0).get_state()
        self._main = threading.get_ident()
        self._context = contextlib.ExitStack()

    def __enter__(self) -> PretendCuda:
        _active.append(self)
        self._context.callback(_active.pop)
        for library in COMPILED.keys() & sys.modules.keys():
            self._context.enter_context(_below_autograd(library))
        # torch.tensor(..., device="cuda") makes a CPU tensor and moves it; a fuser would compile for a GPU
        for read, write, value in (
            (torch._C._only_lift_cpu_tensors, torch._C._set_only_lift_cpu_tensors, True),
            (torch._C._jit_texpr_fuser_enabled, torch._C._jit_set_texpr_fuser_enabled, False),
        ):
            self._context.callback(write, read())
            write(value)
        for owner, name, function in self._patches():
            self._context.enter_context(mock.patch.object(owner, name, function))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._context.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return self.run(func, args, kwargs or {})

    def table(self, package: str = "", since: Counter | None = None) -> list[str]:
        """The stalls as lines of text, most frequent first; only those whose innermost watched line is in `package`.

        Args:
            since: a copy of `stalls` from before what the table is about.
        """
        stalls = self.stalls - (since or Counter())
        chosen = [(count, stall, lines) for (stall, lines), count in stalls.items() if lines[0].startswith(package)]
        return [f"{count:4d}  {stall:<22} {' < '.join(lines)}" for count, stall, lines in sorted(chosen, reverse=True)]

    @contextlib.contextmanager
    def uncounted(self) -> Iterator[None]:
        """Within it nothing is counted: what a test does to compare results."""
        self._quiet += 1
        try:
            yield
        finally:
            self._quiet -= 1

    def run(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """An operator, on the CPU tensors inside its arguments."""
        leaves = tree_flatten((args, kwargs))[0]
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        device = next((leaf for leaf in leaves if isinstance(leaf, torch.device)), None)
        on_gpu = any(isinstance(tensor, PretendTensor) for tensor in tensors)
        if not on_gpu and (device is None or device.type != "cuda"):
            return func(*args, **kwargs)
        composite = torch._C.DispatchKey.CompositeImplicitAutograd
        if func.namespace == "aten" and torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), composite):
            super().__enter__()  # in inference mode it arrives whole
            try:
                return func.decompose(*args, **kwargs)
            finally:
                super().__exit__(None, None, None)
        name, stays = func._schema.name.partition("::")[2], device is None or device.type == "cuda"
        formal = func._schema.arguments
        written = [value for argument, value in zip(formal, args) if argument.alias_info and argument.alias_info.is_write]
        written += [kwargs[argument.name] for argument in formal if argument.is_out and argument.name in kwargs]
        if on_gpu:
            _check_devices(func, name, args, tensors, written)
        if stays and getattr(kwargs.get("generator"), "device", CUDA).type == "cpu":
            raise DeviceError(f"{func}: expected a 'cuda' device type for generator but found 'cpu'")
        if not self._quiet:
            self._count(name, args, kwargs, stays, on_gpu)
        inner_args, inner = tree_map_only(PretendTensor, lambda tensor: tensor.inner, (args, kwargs))
        inner.pop("pin_memory", None)
        if "device" in inner:
            inner["device"] = torch.device("cpu")
        with self._own_random() if stays and torch.Tag.nondeterministic_seeded in func.tags else contextlib.nullcontext():
            outcome = func(*inner_args, **inner)
        if any(isinstance(value, PretendTensor) and value.shape != value.inner.shape for value in written):
            raise NotImplementedError(f"{func} changes the shape of its argument in place")
        results = func._schema.returns
        if written and results and results[0].alias_info and results[0].alias_info.is_write:
            return written[0] if len(results) == 1 else tuple(written)
        if not stays:
            return outcome
        bases = [value for argument, value in zip(formal, args) if argument.alias_info and isinstance(value, Tensor)]
        with torch.inference_mode(torch.is_inference_mode_enabled() and all(base.is_inference() for base in bases)):
            return tree_map_only(Tensor, PretendTensor, outcome)  # a view is what its base is

    def _count(self, name: str, args: tuple, kwargs: dict, stays: bool, on_gpu: bool) -> None:
        self.calls[name] += 1
        stall = ""
        if name == "_local_scalar_dense":
            stall = "item"
        elif name in SHAPED_BY_VALUES or (name == "repeat_interleave" and kwargs.get("output_size") is None):
            stall = name
        elif name == "_to_copy" and not kwargs.get("non_blocking"):
            stall = "cpu()" if not stays else "" if on_gpu else "to(cuda)"
        elif name == "copy_" and isinstance(args[0], PretendTensor) is not isinstance(args[1], PretendTensor):
            stall = "copy_ between devices"
        elif name in INDEXING:
            indices = [index for index in args[1] if index is not None]
            is_fill = name != "index" and isinstance(args[2], Tensor) and args[2].numel() == 1  # becomes masked_fill
            if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
                stall = "" if is_fill else "boolean index"
            elif not all(isinstance(index, PretendTensor) for index in indices):
                stall = "index on the CPU"
        if stall:
            self.stalls[stall, self._where()] += 1

    def _where(self) -> tuple[str, ...]:
        in_backward = threading.get_ident() != self._main
        frame = sys._current_frames().get(self._main) if in_backward else sys._getframe(2)
        lines = ["(backward)"] if in_backward else []
        while frame is not None and len(lines) < 4:
            path = Path(frame.f_code.co_filename)
            package = next((name for name in self.watched if name in path.parts), None)
            if package is not None and frame.f_code.co_name != "__torch_function__":
                lines.append(f"{'/'.join(path.parts[path.parts.index(package) :])}:{frame.f_lineno}")
            frame = frame.f_back
        return tuple(lines or ["elsewhere"])

    @contextlib.contextmanager
    def _own_random(self) -> Iterator[None]:
        """The GPU's stream of random numbers, which is not the CPU's."""
        before = torch.get_rng_state()
        torch.set_rng_state(self._random)
        try:
            yield
        finally:
            self._random = torch.get_rng_state()
            torch.set_rng_state(before)

    def _patches(self) -> list[tuple[Any, str, Any]]:
        """What torch would get from the driver."""

        def seed(value: int) -> None:
            self._random = torch.Generator().manual_seed(int(value)).get_state()

        def restore(state: Tensor, device: Any = None) -> None:
            self._random = state.clone()

        def synchronize(device: Any = None) -> None:
            self.stalls["synchronize", self._where()] += not self._quiet

        name, stream = "pretended GPU", SimpleNamespace(synchronize=lambda: None, wait_stream=lambda _: None)
        properties = SimpleNamespace(name=name, total_memory=1 << 36, major=9, minor=0)
        answers: dict[str, Any] = {
            **{
                "is_available": True,
                "is_initialized": True,
                "is_bf16_supported": True,
                "is_current_stream_capturing": False,
            },
            **{"device_count": 1, "current_device": 0, "get_device_name": name, "get_device_capability": (9, 0)},
            **{"get_device_properties": properties, "current_stream": stream, "mem_get_info": (1 << 36, 1 << 36)},
            **dict.fromkeys(("init", "_lazy_init", "_lazy_call", "set_device", "empty_cache", "ipc_collect")),
        }
        functions: dict[str, Callable] = {key: lambda *_, _value=value, **__: _value for key, value in answers.items()}
        functions |= {
            **{"manual_seed": seed, "manual_seed_all": seed, "set_rng_state": restore, "synchronize": synchronize},
            "get_rng_state": lambda device=None: self._random.clone(),
            "get_rng_state_all": lambda: [self._random.clone()],
            "set_rng_state_all": lambda states: restore(states[0]),
            "memory_allocated": lambda device=None: self.allocated,
            "max_memory_allocated": lambda device=None: self.peak,
            "reset_peak_memory_stats": lambda device=None: setattr(self, "peak", self.allocated),
            "device": lambda device: contextlib.nullcontext(),
        }
        tensor, foreach = torch.tensor, [Tensor, torch.nn.Parameter, PretendTensor]
        return [
            *((torch.cuda, key, function) for key, function in functions.items()),
            (torch, "tensor", lambda data, **options: tensor(_numbers(data), **options)),
            (torch.Tensor, "pin_memory", lambda self, device=None: self),
            (torch.Tensor, "is_pinned", lambda self, device=None: False),
            (sys.modules["torch.optim.optimizer"], "_foreach_supported_types", foreach),
        ]


def _check_devices(func: Any, name: str, args: tuple, tensors: list[Tensor], written: list[Any]) -> None:
    if name in ANY_DEVICE:
        return
    if name in INDEXING and isinstance(args[0], PretendTensor):  # whose indices may lie anywhere
        tensors = [args[0], *(value for value in args[2:3] if isinstance(value, Tensor) and value.numel() > 1)]
    takes_scalars = torch.Tag.pointwise in func.tags or name in TAKES_SCALARS
    on_cpu = [tensor for tensor in tensors if not isinstance(tensor, PretendTensor)]
    misplaced = [tensor for tensor in on_cpu if not (takes_scalars and tensor.dim() == 0)]
    misplaced += [value for value in written if isinstance(value, Tensor) and not isinstance(value, PretendTensor)]
    if misplaced:
        places = ", ".join(f"{tensor.device} {tuple(tensor.shape)}" for tensor in tensors)
        raise DeviceError(f"{func}: expected all tensors to be on the same device, found {places}")


@contextlib.contextmanager
def _below_autograd(library: str) -> Iterator[None]:
    """Hand the operators of a C++ extension on to the mode, before they look for their own kernel for CUDA."""

    def handing_on(operator: Any) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if any(isinstance(value, Tensor) and value.requires_grad for value in arguments):
                raise NotImplementedError(f"{operator} with a gradient")
            with torch._C._AutoDispatchBelowAutograd():
                return operator(*arguments)

        return call

    with torch.library._scoped_library(library, "IMPL") as scope:
        for name in COMPILED[library]:
            scope.impl(name, handing_on(getattr(getattr(torch.ops, library), name).default), "AutogradCUDA")
        yield


def _install_guard() -> None:
    """Give CUDA the device guard of the meta device, which does nothing; autograd takes streams and threads from it.

    It is a C++ object. CUDA's has a copy of its virtual table, in which the entries that return a type or a device are
    replaced by that of `deviceCount()`: its 1 reads as the type CUDA, and as the device `cuda:0`.
    """
    if torch.cuda.is_available():
        raise RuntimeError("This machine has a GPU: run the tests on it, not on a pretended one.")
    library = next(Path(torch.__file__).parent.glob("lib/libc10.so"))
    registry = (ctypes.c_void_p * 22).in_dll(ctypes.CDLL(str(library)), "_ZN3c104impl26device_guard_impl_registryE")
    cuda, meta = 1, 14  # c10/core/DeviceType.h; the entries in the order of c10/core/impl/DeviceGuardImplInterface.h
    kind, exchange_device, get_device, get_stream, default_stream, device_count, entries = 0, 1, 2, 5, 6, 14, 22
    pointers = ctypes.POINTER(ctypes.c_void_p)
    table = ctypes.cast(ctypes.cast(registry[meta], pointers)[0], pointers)
    call = ctypes.CFUNCTYPE(ctypes.c_int16, ctypes.c_void_p)
    if (call(table[kind])(registry[meta]) & 0xFF, call(table[device_count])(registry[meta])) != (meta, 1):
        raise RuntimeError(f"torch {torch.__version__} has another layout of its device guards")
    copied = (ctypes.c_void_p * entries)(*(table[entry] for entry in range(entries)))
    copied[kind] = copied[exchange_device] = copied[get_device] = table[device_count]
    copied[default_stream] = table[get_stream]
    guard = (ctypes.c_void_p * 2)(ctypes.addressof(copied), None)
    torch._pretended_guard = (copied, guard)  # type: ignore[attr-defined]  # to live as long as torch
    registry[cuda] = ctypes.addressof(guard)


_install_guard()
atexit.register(time.sleep, 0.2)  # a thread of autograd may still drop tensors, for which it needs Python
