"""Work on several threads, and work that Ctrl-C does not break into."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cnclip_client import Client
from cnclip_client._threads import unbroken
from cnclip_client.extraction import ExtractOptions, _checkpoints, extract
from cnclip_client.extraction._work_folder import locked
from cnclip_client.sources import text_source


def test_an_interrupt_comes_behind_what_must_not_be_broken_off() -> None:
    before, done = signal.getsignal(signal.SIGINT), []
    with pytest.raises(KeyboardInterrupt):
        with unbroken():
            signal.raise_signal(signal.SIGINT)
            done.append(1)
        done.append(2)
    assert done == [1]
    assert signal.getsignal(signal.SIGINT) is before


def test_elsewhere_than_on_the_main_thread_there_is_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever thread imports `threading` first is the main one for it, before Python 3.13."""
    monkeypatch.setattr(threading, "main_thread", threading.current_thread)

    def work() -> None:
        with unbroken():
            found.append(signal.getsignal(signal.SIGINT))

    found: list[Any] = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGINT)]


def test_an_interrupt_while_a_request_is_sent_leaves_the_connection_sound(
    triton: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python calls the handler at the next step of its own, which is where gRPC lets go of its lock."""
    real = threading.Condition.__exit__
    interrupted: list[bool] = []

    def release(self: threading.Condition, *error: Any) -> Any:
        if not interrupted and threading.current_thread() is threading.main_thread():
            interrupted.append(True)
            signal.raise_signal(signal.SIGINT)
        return real(self, *error)

    with Client(triton.url, model="vit-b-16") as client:
        client.encode_texts(["a"])
        send = client._endpoints.inside()[0].transport._client.async_infer

        def interrupting(*given: Any, **options: Any) -> Any:
            monkeypatch.setattr(threading.Condition, "__exit__", release)
            return send(*given, **options)

        monkeypatch.setattr(client._endpoints.inside()[0].transport._client, "async_infer", interrupting)
        with pytest.raises(KeyboardInterrupt):
            client.encode_texts(["b"])
        assert interrupted
        # It was noted, and cancelled.
        until = time.monotonic() + 5
        while client._endpoints.inside()[0].under_way and time.monotonic() < until:
            time.sleep(0.001)
        assert client._endpoints.inside()[0].under_way == 0
        answered: list[Any] = []
        again = threading.Thread(target=lambda: answered.append(client.encode_texts(["c"])), daemon=True)
        again.start()
        again.join(5)
        assert len(answered) == 1


def test_an_interrupt_as_a_lock_is_let_go_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(path: Path) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt), locked(tmp_path / "work", tmp_path):
        patched.setattr(Path, "iterdir", interrupt)
    with locked(tmp_path / "work", tmp_path):
        pass


def test_a_job_that_is_interrupted_does_not_wait_for_ever_for_its_last_checkpoint(
    tmp_path: Path, triton: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    def interrupt(items: int, failures: int) -> None:
        if items:
            raise KeyboardInterrupt

    monkeypatch.setattr(_checkpoints, "_LAST_S", 0.1)
    (tmp_path / "texts.txt").write_text("1\n2\n3\n")
    never = threading.Event()
    with Client(triton.url, model="vit-b-16") as client:
        monkeypatch.setattr(client, "require_unchanged", lambda: never.wait(20) or None)
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            extract(
                client, text_source(tmp_path / "texts.txt"), tmp_path / "out.npy", ExtractOptions(), report=interrupt
            )
    assert time.monotonic() - began < 10
    assert "no last checkpoint: it did not come to its end" in caplog.messages
    never.set()


def test_from_asyncio(triton: Any, fake: Any) -> None:
    """As docs/client.md has it: requests are under way at once, and one that is given up harms no other."""
    arrived, on = threading.Barrier(5), threading.Event()
    triton.before_infer = lambda attempt, items: (arrived.wait(10), on.wait(10))

    async def ask() -> list[np.ndarray]:
        with ThreadPoolExecutor(5) as pool:
            asyncio.get_running_loop().set_default_executor(pool)
            calls = [asyncio.to_thread(client.encode_texts, [word], normalize=False) for word in "abcd"]
            given_up, *others = map(asyncio.ensure_future, calls)
            await asyncio.to_thread(arrived.wait, 10)
            given_up.cancel()
            on.set()
            return await asyncio.gather(*others)

    with Client(triton.url, model="vit-b-16") as client:
        features = asyncio.run(ask())
    np.testing.assert_array_equal(np.concatenate(features), [fake.features_of(word.encode()) for word in "bcd"])
