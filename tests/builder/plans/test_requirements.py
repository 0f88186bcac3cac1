"""What a machine lacks for plans is one line, before anything is exported or built."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest
from cnclip_builder.errors import MissingRequirementError
from cnclip_builder.plans import requirements
from cnclip_builder.plans.api import TensorRT
from cnclip_builder.plans.device import current_device, driver_version, why_no_device
from cnclip_builder.plans.record import Device
from cnclip_builder.plans.requirements import require_machine

from tests.builder.plans.tensorrt_versions import make_module

H200 = Device("NVIDIA H200", "9.0")


def fake_driver(*, cuda: int = 12080, init: int = 0, get: int = 0, capability: tuple[int, int] = (9, 0)) -> Any:
    """What a driver's library answers, by its functions' names."""

    def give(value: Any, result: int = 0) -> Any:
        def call(target: Any, *_: Any) -> int:
            target._obj.value = value
            return result

        return call

    def name(buffer: Any, *_: Any) -> int:
        buffer.value = b"NVIDIA H200"
        return 0

    return SimpleNamespace(
        cuInit=lambda _: init,
        cuDeviceGet=give(0, get),
        cuDeviceGetName=name,
        cuDeviceGetAttribute=lambda target, which, _: give(capability[which - 75])(target),
        cuDriverGetVersion=give(cuda),
    )


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A machine whose driver's library, CUDA's runtime and cuBLAS are what the test says."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def be(driver: Any, runtime: int = 12080) -> None:
        def load(library: str, **_: Any) -> Any:
            if driver is None:
                raise OSError(f"{library}: cannot open shared object file")
            assert library == "libcuda.so.1"
            return driver

        monkeypatch.setattr(ctypes, "CDLL", load)
        monkeypatch.setattr(requirements, "require_cuda_runtime", lambda: "libcudart.so")
        monkeypatch.setattr(requirements, "runtime_version", lambda _: runtime)
        monkeypatch.setattr(requirements, "require_cublas", lambda: {"libcublasLt.so.11": "11.11.3"})

    return be


def tensorrt(version: str) -> TensorRT:
    module = make_module({"8.5": "8.5.3.1", "8.6": "8.6.1"}.get(version[:3], "10.13.0.35"))
    module.__version__ = version
    made = TensorRT(module)
    made.require_builder = lambda: None  # type: ignore[method-assign]
    return made


def test_a_machine_that_has_all(machine: Any) -> None:
    machine(fake_driver())
    assert (current_device(), driver_version()) == (H200, 12080)
    assert require_machine(tensorrt("10.13.0.35"), current_device()) == {}
    assert require_machine(tensorrt("8.6.1"), current_device()) == {}
    assert require_machine(tensorrt("8.5.3.1"), current_device()) == {"libcublasLt.so.11": "11.11.3"}


@pytest.mark.parametrize(
    ("driver", "why"),
    [
        (None, "NVIDIA's driver, libcuda.so.1, is not there"),
        (fake_driver(init=100), "the driver finds none"),
        (fake_driver(get=101), "CUDA_VISIBLE_DEVICES names none that is there"),
        (fake_driver(init=803), "the driver's library is of another version than its kernel module"),
        (fake_driver(init=999), "the driver answers with CUDA error 999"),
    ],
)
def test_no_gpu(machine: Any, driver: Any, why: str) -> None:
    machine(driver)
    assert current_device() is None
    with pytest.raises(MissingRequirementError) as caught:
        require_machine(tensorrt("10.13.0.35"), None)
    assert str(caught.value).startswith(f"no NVIDIA GPU was found ({why}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("visible", ["", "-1", " "])
def test_gpus_that_are_hidden(machine: Any, monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    machine(fake_driver(init=100))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert why_no_device() == f"CUDA_VISIBLE_DEVICES is {visible!r}, which hides all: unset it, or name one"


@pytest.mark.parametrize(
    ("version", "capability", "complaint"),
    [
        ("8.5.3.1", "3.0", "builds for 3.5 and later"),
        ("8.6.1", "3.7", "builds for 5.0 and later"),
        ("10.4.0.26", "5.2", "builds for 6.0 and later"),
        ("10.5.0.18", "7.0", "builds for 7.5 and later"),
        ("11.4.0.106", "7.0", "builds for 7.5 and later"),
        ("8.5.3.1", "10.0", "does not know yet: install 10.8 or later"),
        ("10.7.0.23", "12.0", "does not know yet: install 10.8 or later"),
    ],
)
def test_a_gpu_that_this_tensorrt_does_not_know(machine: Any, version: str, capability: str, complaint: str) -> None:
    machine(fake_driver())
    with pytest.raises(MissingRequirementError, match=rf"^Some GPU has compute capability {capability}, .*{complaint}"):
        require_machine(tensorrt(version), Device("Some GPU", capability))


@pytest.mark.parametrize(
    ("version", "capability"), [("10.4.0.26", "7.0"), ("10.13.0.35", "7.5"), ("10.8.0.43", "12.0"), ("8.6.1", "9.0")]
)
def test_a_gpu_that_it_knows(machine: Any, version: str, capability: str) -> None:
    machine(fake_driver())
    assert require_machine(tensorrt(version), Device("Some GPU", capability)) == {}


def test_a_driver_that_is_too_old_for_the_runtime(machine: Any) -> None:
    machine(fake_driver(cuda=12040), runtime=13010)
    with pytest.raises(
        MissingRequirementError,
        match=r"driver runs CUDA 12.4 at most, and libcudart.so is of CUDA 13.1: install driver 580 or later, or .*-cu12\)",
    ):
        require_machine(tensorrt("10.13.0.35"), H200)
    machine(fake_driver(cuda=12040), runtime=12080)  # any second number of the same CUDA runs
    assert require_machine(tensorrt("10.13.0.35"), H200) == {}
