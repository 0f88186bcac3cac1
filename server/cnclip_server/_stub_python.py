"""A Python for Triton's stubs, where the paths of the one that runs this are not ASCII.

The embedded tritonserver's stubs start Python isolated and in the C locale, whatever the environment says: to them
paths are ASCII. Where others are in a `.pth` file, as an editable install in a folder with a Chinese name has them, or
lead to a compiled module on Python 3.13, they end before any model is loaded. So they are given links with ASCII names.
"""

from __future__ import annotations

import sys
from pathlib import Path

from cnclip_server._host import python_version


def lay_out_stub_python(folder: Path) -> Path | None:
    """Lays out a virtual environment with ASCII names, where all is found that this process imports from.

    Args:
        folder: The server's temporary folder.

    Returns:
        The folder of its `python3`, to stand first on PATH, without a PYTHONPATH; None where there is no need of it.

    Raises:
        OSError: The temporary folder is full.
    """
    paths = [str(Path(path).absolute()) for path in sys.path if Path(path).is_dir()]
    if all(path.isascii() for path in (sys.prefix, sys.base_prefix, *paths)):
        return None
    home, base = folder / "python", folder / "base-python"
    packages = home / "lib" / f"python{python_version()}" / "site-packages"
    packages.mkdir(parents=True)
    (home / "bin").mkdir()
    (home / "bin" / "python3").symlink_to(Path(sys.executable).resolve())
    base.symlink_to(sys.base_prefix, target_is_directory=True)
    (home / "pyvenv.cfg").write_text(f"home = {base}/bin\n", encoding="ascii")
    with (packages / "these.pth").open("w", encoding="ascii") as these:
        for number, path in enumerate(paths):
            if not path.isascii():
                link = home / f"path-{number}"
                link.symlink_to(path, target_is_directory=True)
                path = str(link)
            these.write(f"{path}\n")
    return home / "bin"
