from __future__ import annotations

import cnclip_server


def test_public_names() -> None:
    assert cnclip_server.__all__ == [
        "Binary",
        "BinaryNotFound",
        "PortInUse",
        "RepositoryError",
        "ServerError",
        "SettingError",
        "StartupFailed",
        "TemporaryFolderError",
        "Tls",
        "TritonServer",
        "UnsupportedHost",
        "find_binary",
        "require_tritonserver",
    ]


def test_one_root_for_all_errors() -> None:
    others = ("Binary", "Tls", "TritonServer", "find_binary", "require_tritonserver")
    errors = [getattr(cnclip_server, name) for name in cnclip_server.__all__ if name not in others]
    assert all(issubclass(error, cnclip_server.ServerError) for error in errors)
