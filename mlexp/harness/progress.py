"""Progress of long cells: a live line on a terminal, a plain line now and then in a log, nothing under -q."""

import contextlib
import sys
import time

import pytest

LIVE_S, PLAIN_S = 0.2, 30.0  # minimum seconds between two lines
PATIENCE_S = 1.0  # a cell shorter than this shows nothing


class Progress:
    """Callable as `progress(done, total, what)` from anywhere in a cell; cheap enough for an inner loop.

    A total of 0 announces something (a stand-in is used, a model is trained): shown at once, as a line that stays.
    """

    def __init__(self, config: pytest.Config, name: str) -> None:
        self._capture = config.pluginmanager.getplugin("capturemanager")
        self._out = sys.__stdout__
        self._live = bool(self._out and self._out.isatty())
        self._name, self._shown = name, False
        self._interval = LIVE_S if self._live else PLAIN_S
        self._quiet = getattr(config.option, "verbose", -1) < 0 or self._out is None  # no terminal plugin: quiet too
        self._next = float("inf") if self._quiet else time.perf_counter() + (PATIENCE_S if self._live else PLAIN_S)

    def __call__(self, done: int, total: int, what: str) -> None:
        if total == 0 and not self._quiet:
            self._write(f"{self._name}: {what}", stays=True)
        elif time.perf_counter() >= self._next:
            self._next = time.perf_counter() + self._interval
            self._write(f"{self._name}: {what} ({done}/{total})")

    def close(self) -> None:
        """Wipe the live line; in a log, end the last one."""
        if self._shown:
            self._write("")

    def _write(self, text: str, stays: bool = False) -> None:
        self._shown = not stays
        live = f"\r\033[K{text}\n" if stays else f"\r\033[K{text[:150]}"
        with self._capture.global_and_fixture_disabled() if self._capture else contextlib.nullcontext():
            if self._out is not None:
                self._out.write(live if self._live else f"\n{text}" + "\n" * stays)
                self._out.flush()
