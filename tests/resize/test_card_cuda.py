"""What is asked of CUDA, by way of the real cuda-core and NVRTC: against a libcuda of the tests' own, on the host.

A library of that name can't be had beside the real one: so all runs in processes of its own. On a GPU it was not run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cnclip_card._resize import SOURCE
from cnclip_resize import order_of_passes

from tests.conftest import ROOT
from tests.resize.card_twin import COMPILED_BY, FLAGS, can_compile

pytest.importorskip("cuda.core", reason="cuda-core is not installed: the extra [gpu-decode] has it")
pytest.importorskip("nvidia.nvimgcodec", reason="nvImageCodec is not installed: the extra [gpu-decode] has it")

pytestmark = [
    pytest.mark.skipif(not can_compile(), reason="there is no C++ compiler"),
    pytest.mark.skipif(order_of_passes() is None, reason="this Pillow's order of passes is not known"),
]

BEGIN = """
import ctypes, gc
import numpy as np
from cnclip_card import Card, CardUnfit, open_card
from cnclip_card._cuda import Cuda
from cnclip_card._decoder import NvImageCodec
from cnclip_pixels import image_formats
from tests.resize.test_card import ALL, SIDE, exact, require_as_exact, under_a_limit

driver = ctypes.CDLL("libcuda.so.1")
driver.twin_allocated.restype = ctypes.c_size_t
driver.twin_is_plain.restype, driver.twin_is_plain.argtypes = ctypes.c_bool, [ctypes.c_ulonglong]

def card(memory=1 << 30):
    device = Cuda(0)
    assert device.stream
    return Card(device, NvImageCodec(None, 1), side=SIDE, formats=image_formats(), memory=memory)
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the library."""
    folder = tmp_path_factory.mktemp("driver")
    source = Path(__file__).with_name("cuda_twin.cpp")
    command = [COMPILED_BY, *FLAGS, f'-DKERNELS="{SOURCE}"', str(source), "-o", str(folder / "libcuda.so.1"), "-ldl"]
    subprocess.run(command, check=True)
    return folder


def run(driver: Path, script: str, **environment: str) -> str:
    told = {
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join([str(driver), os.environ.get("LD_LIBRARY_PATH", "")]),
        "PYTHONPATH": os.pathsep.join([*sys.path, str(ROOT)]),
        "PYTHONWARNINGS": "ignore::UserWarning",  # Pillow's, of odd metadata
        **environment,
    }
    result = subprocess.run(
        [sys.executable, "-c", BEGIN + script], env=told, capture_output=True, text=True, check=False, timeout=200
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_a_batch_of_all_kinds(driver: Path) -> None:
    """And then nothing is left in the card's memory."""
    run(
        driver,
        """
prepared = require_as_exact(card(), ALL)
assert prepared.on_card >= 16, prepared
del prepared
under_a_limit.cache_clear()  # its errors have the frames that they passed
gc.collect()
assert driver.twin_allocated() == 0
""",
    )


def test_a_tensor_holds_memory_that_can_be_shared_until_triton_lets_go(driver: Path) -> None:
    """Triton takes the managed tensor out of a capsule, which it renames, and calls its deleter later."""
    run(
        driver,
        """
import sys
sys.path.insert(0, {backend!r})
from cnclip_ort_device import DeviceArray

squares = card().prepare([ALL["420"], ALL["PNG"], ALL["grey"]], exact).squares
assert driver.twin_is_plain(squares._memory.address)
expected = [squares.read(row) for row in range(3)]
capsule = squares.tensor(1, 2)
del squares
gc.collect()
array = DeviceArray.of(capsule, None)
assert (array.kind, array.device, array.shape, array.dtype) == ("cuda", 0, (2, SIDE, SIDE, 3), np.uint8), array
there = ctypes.string_at(array.address, array.nbytes)
assert there == b"".join(row.tobytes() for row in expected[1:])

api = ctypes.pythonapi
api.PyCapsule_GetPointer.restype, api.PyCapsule_GetPointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
api.PyCapsule_SetName.argtypes = (ctypes.py_object, ctypes.c_char_p)
managed = api.PyCapsule_GetPointer(capsule, b"dltensor")
name = ctypes.create_string_buffer(b"used_dlpack")
api.PyCapsule_SetName(capsule, name)
del array, capsule
gc.collect()
assert driver.twin_allocated() == 3 * 3 * SIDE * SIDE
# Behind the tensor of 48 bytes and the manager's context.
deleter = ctypes.cast(ctypes.c_void_p.from_address(managed + 56), ctypes.PYFUNCTYPE(None, ctypes.c_void_p))
deleter(managed)
gc.collect()
assert driver.twin_allocated() == 0
""".replace("{backend!r}", repr(str(ROOT / "server/cnclip_server/backends/onnxruntime"))),
    )


def test_the_stand_in_joins_rows_within_the_card(driver: Path) -> None:
    run(
        driver,
        """
import sys
sys.path.insert(0, {backend!r})
import cnclip_ort_device as devices

cuda = Cuda(0)
parts, target = [cuda.allocate(30), cuda.allocate(60)], cuda.allocate(90)
arrays = []
for count, part in zip((1, 2), parts):
    cuda.write(part.address, bytes(range(count, count + 30)) * count)
    arrays.append(devices.DeviceArray.of(cuda.tensor(part, 0, (count, 5, 6)), part))
devices._copy(arrays, target.address)
# As ONNX Runtime reads it: by a stream that waits for no other.
assert ctypes.string_at(target.address, 90) == bytes(range(1, 31)) + bytes(range(2, 32)) * 2
try:
    devices._copy(arrays[1:], target.address + 60)
except RuntimeError as error:
    assert str(error) == "CUDA_ERROR_INVALID_VALUE while inputs were copied on the GPU"
else:
    raise AssertionError("copied behind the end")
""".replace("{backend!r}", repr(str(ROOT / "server/cnclip_server/backends/onnxruntime"))),
    )


def test_a_full_card(driver: Path) -> None:
    """At whichever allocation it fails, all rows are right, and the next batch is the card's again."""
    run(
        driver,
        """
one = card(memory=500_000)
images = {name: ALL[name] for name in ("420", "PNG", "422", "grey")}
for after in range(4):
    driver.twin_fail_after(after)
    prepared = require_as_exact(one, images)
    assert (prepared.on_card, prepared.full) == (max(0, after - 1), True), (after, prepared)
    assert "CUDA_ERROR_OUT_OF_MEMORY" in prepared.why_not
    prepared = require_as_exact(one, images)
    assert (prepared.on_card, prepared.full) == (3, False), prepared
del prepared
gc.collect()
assert driver.twin_allocated() == 0
""",
    )


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"CUDA_TWIN_GPUS": "0"}, "CUDA does not work (CUDAError: CUDA_ERROR_NO_DEVICE"),
        ({"CUDA_TWIN_VERSION": "12040"}, "the NVIDIA driver is for CUDA 12.4, and cuda-bindings 13."),
        ({"CUDA_TWIN_CAPABILITY": "70"}, "this GPU has compute capability 7.0, and CUDA 13 compiles for 7.5 and later"),
    ],
)
def test_no_gpu_and_an_old_one_or_an_old_driver_are_one_line(
    driver: Path, environment: dict[str, str], said: str
) -> None:
    script = "try:\n    open_card(32, image_formats())\nexcept CardUnfit as error:\n    print(error)\n"
    told = run(driver, script, **environment)
    assert told.startswith(f"images can't be decoded on a GPU here: {said}")
    assert told.endswith("mend this, or build the repository with --preprocess exact\n")
    assert told.count("\n") == 1


def test_no_driver_is_one_line(tmp_path: Path) -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("there is a driver")
    script = "from cnclip_card import open_card, CardUnfit\ntry:\n    open_card(32, ['JPEG'])\nexcept CardUnfit as error:\n    print(error)\n"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.startswith("images can't be decoded on a GPU here: there is no NVIDIA driver (")
    assert result.stdout.count("\n") == 1
