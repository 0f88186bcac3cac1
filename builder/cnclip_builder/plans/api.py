"""TensorRT, from 8.5 to 11, behind what this project needs of it: the one module that touches it.

Versions differ in what their Python module has, and that is what is asked, never a version number:

| | 8.5 | 8.6 | 10 | 11 |
|---|---|---|---|---|
| `INormalizationLayer`, and opset 17 with LayerNormalization | | x | x | x |
| `STRONGLY_TYPED` networks: precision is the ONNX file's | | | x | x |
| precision flags (`FP16`), per-layer precision | x | x | x | |
| `builder_optimization_level` | | x | x | x |
| `IProgressMonitor` | | | x | x |
| compiles transformers with cuBLAS, and runs them with it | x | | | |

What else differs (explicit batch, timing caches, named tensors and how one runs them) is Polygraphy's business.

This module travels to machines that have little more than TensorRT (see `bundle`), so it runs on Python 3.8.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnclip_builder.errors import MissingRequirementError, PlanError, SettingError
from cnclip_builder.plans.profiles import Profile
from cnclip_builder.plans.progress import Progress, complaints
from cnclip_builder.tensors import FP32_PREFIX, InputSpec

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    PlanRunner = Callable[[int, npt.NDArray[Any]], Mapping[str, npt.NDArray[np.float32]]]
    """Runs a plan: the number of a profile and the input tensor -> the outputs by name."""

    PlanOnDevice = Callable[[int, npt.NDArray[Any]], Callable[[], object]]
    """Lays an input tensor into a GPU's memory, for a profile -> what runs the plan on it there, and waits."""

# Libraries beside TensorRT that it takes kernels from where it is let; a plan with such kernels needs them where it is
# served, too. 8.5 needs cuBLAS's two in any case, and may use them; 8.6 and later have them off by default.
_CUBLAS_TACTICS = ("CUBLAS", "CUBLAS_LT")
_OUTSIDE_TACTICS = (*_CUBLAS_TACTICS, "CUDNN")

_FAST_LEVEL = 1
"""The optimization level of a fast build: kernels are sorted by heuristics, and only the best of them are timed."""

# Layers that compute; others (casts, transposes, constants) have no precision of their own to hold.
_COMPUTING_LAYERS = ("ELEMENTWISE", "REDUCE", "UNARY")


@dataclass(frozen=True)
class BuildOptions:
    """Settings of TensorRT's builder.

    Attributes:
        workspace_mib: most GPU memory that a kernel may take for scratch, in MiB; None for all there is.
        optimization_level: 0 (fast to build) to 5 (fast to run); None for TensorRT's own default, 3.
        tf32: whether FP32 products may round what they multiply to TF32's 10 bits, as TensorRT does by default.
        fast: whether to build for a first trial, at a low optimization level where none is given and there are levels.
    """

    workspace_mib: int | None = None
    optimization_level: int | None = None
    tf32: bool = False
    fast: bool = False

    def __post_init__(self) -> None:
        """Refuses values out of range.

        Raises:
            SettingError: naming the setting.
        """
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise SettingError(f"the workspace limit is {self.workspace_mib} MiB: choose at least 1, or none")
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise SettingError(f"the optimization level is {self.optimization_level}: choose 0 to 5, or none")


class TensorRT:
    """The installed TensorRT.

    Args:
        module: the imported `tensorrt`.

    Raises:
        MissingRequirementError: it is older than 8.5.
    """

    def __init__(self, module: Any) -> None:
        self._trt = module
        if not hasattr(module.DataType, "UINT8"):
            raise MissingRequirementError(
                f"TensorRT {self.version} takes no uint8 tensors: install 8.5 or later, your tritonserver's version"
            )

    @property
    def version(self) -> str:
        """As the module gives it."""
        return str(self._trt.__version__)

    @property
    def strongly_typed(self) -> bool:
        """Whether networks can be bound to the types of their ONNX file."""
        return hasattr(self._trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")

    @property
    def opset(self) -> str:
        """The ONNX opset for its parser."""
        return "17" if hasattr(self._trt, "INormalizationLayer") else "16"

    @property
    def needs_cublas(self) -> bool:
        """Whether transformers are compiled and run with cuBLAS, whatever kernels are chosen."""
        return not hasattr(self._trt, "INormalizationLayer")

    def require_builder(self) -> None:
        """Makes sure that TensorRT's builder starts, which takes a GPU and a driver that is new enough.

        Raises:
            MissingRequirementError: with TensorRT's own first reason.
        """
        from polygraphy.backend.trt import get_trt_logger

        with complaints() as said:
            try:
                self._trt.Builder(get_trt_logger())
            except TypeError as error:  # how its Python module says that there is none
                raise MissingRequirementError(
                    f"TensorRT {self.version} does not start here: {said.first or error}; install a driver that is new "
                    "enough for it, or a TensorRT that was made for this driver's CUDA"
                ) from error

    def build(
        self,
        graph: Path,
        tensor: InputSpec,
        profiles: Sequence[Profile],
        precision: str,
        options: BuildOptions,
        timing_cache: Path,
    ) -> bytes:
        """Builds a plan for this machine's GPU; takes minutes.

        Args:
            graph: an ONNX file of opset `self.opset`; its weights are beside it.
            tensor: its input.
            profiles: what to tune for.
            precision: "fp16" allows FP16 where the ONNX file's types don't bind.
            options: settings of the builder.
            timing_cache: a file of measured kernels; read if it exists, and written.

        Returns:
            The serialised engine.

        Raises:
            SettingError: this version lacks an option, or a profile does not fit the input.
            PlanError: TensorRT refuses the graph, with its own first reason, or the graph has another input.
        """
        from polygraphy.backend import trt as polygraphy

        if options.optimization_level is not None and not hasattr(
            self._trt.IBuilderConfig, "builder_optimization_level"
        ):
            raise SettingError(f"TensorRT {self.version} has no optimization levels: leave --optimization-level out")
        chosen = []
        for profile in profiles:
            low, tuned, high = profile.shapes(tensor)
            chosen.append(polygraphy.Profile().add(tensor.name, low, tuned, high))
        progress = Progress(graph.name)
        with _polygraphy_errors(f"TensorRT {self.version} can't build {graph.name}"):
            builder, network, parser = polygraphy.network_from_onnx_path(str(graph), strongly_typed=self.strongly_typed)
            self._check_input(graph, network, tensor)
            if precision == "fp16" and not self.strongly_typed:
                self._hold_fp32(network)
            config = polygraphy.CreateConfig(
                profiles=chosen,
                load_timing_cache=str(timing_cache) if timing_cache.exists() else None,
                **self._settings(precision, options),
                progress_monitor=progress.monitor(self._trt),
            )
            with progress.told():
                plan = polygraphy.engine_bytes_from_network(
                    (builder, network, parser), config=config, save_timing_cache=str(timing_cache)
                )
        return bytes(plan)

    @contextlib.contextmanager
    def open(self, plan: bytes) -> Iterator[PlanRunner]:
        """Loads a plan onto the GPU and gives a function that runs it.

        Raises:
            PlanError: TensorRT refuses the plan, as one of another version or GPU.
        """
        with self._runner(plan) as (runner, name):

            def run(profile: int, inputs: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.float32]]:
                runner.set_profile(profile)
                outputs = runner.infer({name: inputs})
                # The runner's own buffers are written over by its next run.
                return {output: array.copy() for output, array in outputs.items()}

            yield run

    @contextlib.contextmanager
    def open_on_device(self, plan: bytes) -> Iterator[PlanOnDevice]:
        """Loads a plan onto the GPU, to be timed: inputs and outputs stay there.

        Raises:
            PlanError: as `open`.
        """
        from polygraphy.cuda import DeviceArray
        from polygraphy.datatype import DataType

        with self._runner(plan) as (runner, name), contextlib.ExitStack() as arrays:

            def lay(profile: int, inputs: npt.NDArray[Any]) -> Callable[[], object]:
                runner.set_profile(profile)
                there = DeviceArray(inputs.shape, DataType.from_dtype(inputs.dtype, "numpy"))
                arrays.enter_context(there).copy_from(inputs)
                return lambda: runner.infer({name: there}, check_inputs=False, copy_outputs_to_host=False)

            yield lay

    @contextlib.contextmanager
    def _runner(self, plan: bytes) -> Iterator[tuple[Any, str]]:
        """Loads a plan; gives Polygraphy's runner and the name of the input."""
        from polygraphy.backend import trt as polygraphy

        with _polygraphy_errors(f"TensorRT {self.version} can't run the plan"):
            engine = polygraphy.engine_from_bytes(plan)
            (name,) = (
                tensor
                for tensor in map(engine.get_tensor_name, range(engine.num_io_tensors))
                if engine.get_tensor_mode(tensor) == self._trt.TensorIOMode.INPUT
            )
            with polygraphy.TrtRunner(engine) as runner:
                yield runner, name

    def _settings(self, precision: str, options: BuildOptions) -> dict[str, Any]:
        """The arguments of Polygraphy's `CreateConfig` that depend on version, precision and options."""
        settings: dict[str, Any] = {"tf32": options.tf32}
        if precision == "fp16" and not self.strongly_typed:
            settings.update(fp16=True, precision_constraints="obey")
        if options.workspace_mib is not None:
            settings["memory_pool_limits"] = {self._trt.MemoryPoolType.WORKSPACE: options.workspace_mib << 20}
        if options.optimization_level is not None:
            settings["builder_optimization_level"] = options.optimization_level
        elif options.fast and hasattr(self._trt.IBuilderConfig, "builder_optimization_level"):
            settings["builder_optimization_level"] = _FAST_LEVEL
        sources = getattr(self._trt, "TacticSource", None)
        if sources is not None:
            needed = _CUBLAS_TACTICS if self.needs_cublas else ()
            settings["tactic_sources"] = [
                source for name, source in sources.__members__.items() if name not in _OUTSIDE_TACTICS or name in needed
            ]
        return settings

    def _check_input(self, graph: Path, network: Any, tensor: InputSpec) -> None:
        real = [network.get_input(index) for index in range(network.num_inputs)]
        names = [found.name for found in real]
        if names != [tensor.name]:
            raise PlanError(
                f"{graph.name} has inputs {', '.join(map(repr, names))}, not {tensor.name!r}: build it again"
            )
        wanted = getattr(self._trt.DataType, {"float32": "FLOAT"}.get(tensor.dtype, tensor.dtype.upper()))
        if real[0].dtype != wanted:
            raise PlanError(
                f"{graph.name}: input {tensor.name!r} arrives in TensorRT as {real[0].dtype}, not {wanted}: build it "
                "again"
            )

    def _hold_fp32(self, network: Any) -> None:
        """Binds the layers that must compute in FP32 to it, where TensorRT chooses types itself."""
        kinds = [getattr(self._trt.LayerType, kind) for kind in _COMPUTING_LAYERS]
        for layer in map(network.get_layer, range(network.num_layers)):
            if layer.name.startswith(FP32_PREFIX) and layer.type in kinds:
                layer.precision = self._trt.DataType.FLOAT
                for index in range(layer.num_outputs):
                    layer.set_output_type(index, self._trt.DataType.FLOAT)


def load_tensorrt() -> TensorRT:
    """Imports TensorRT and Polygraphy.

    Raises:
        MissingRequirementError: one of them is missing or too old.
    """
    try:
        import polygraphy.config
        from polygraphy.logger import G_LOGGER
    except ImportError:
        raise MissingRequirementError("polygraphy is not installed: pip install 'cn-clip-triton[tensorrt]'") from None
    try:
        # TensorRT-RTX has the same interface; the tests use it where there is no GPU.
        if polygraphy.config.USE_TENSORRT_RTX:
            import tensorrt_rtx as tensorrt
        else:
            import tensorrt
    except (ImportError, OSError) as error:
        raise MissingRequirementError(
            f"TensorRT is not installed ({error}): install the version that your tritonserver has, or work in "
            "NVIDIA's container (see docs/tensorrt.md)"
        ) from None
    G_LOGGER.colors = False  # it would print that a library for them is missing
    G_LOGGER.use_python_logging_system = True
    G_LOGGER.module_severity = G_LOGGER.WARNING
    logging.getLogger("Polygraphy").setLevel(logging.WARNING)
    return TensorRT(tensorrt)


@contextlib.contextmanager
def _polygraphy_errors(what: str) -> Iterator[None]:
    from polygraphy.exception import PolygraphyException

    with complaints() as said:
        try:
            yield
        except PolygraphyException as error:
            own = str(error).strip().splitlines()
            reason = said.first or (own[0] if own else "no reason given")
            raise PlanError(f"{what}: {reason} (-v shows its log); use PLATFORM=onnxruntime meanwhile") from error
