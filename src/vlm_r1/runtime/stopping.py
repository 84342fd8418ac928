"""SIGTERM and SIGHUP, which schedulers send some time before they kill: the steps that are done are saved first.

A signal is only noted. `Stopped` is raised where nothing is half done and no other process waits for this one: at a
sign of life (`World.beat`) outside of an update; with several processes, while each answers at its own pace, and
otherwise where all agree on it.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

from vlm_r1.distributed.processes import World

NUMBERS = (signal.SIGTERM, signal.SIGHUP)


class Signals:
    """`with Signals(world) as signals: ...`: until `begin` a signal ends what is within at once, then it is noted.

    A signal that the program ignores (as under nohup) or handles stays so.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self._mine: list[signal.Signals] = []
        self._terminals = [number for number in (1, 2) if os.isatty(number)]
        self._begun = False

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self._mine = [number for number in NUMBERS if signal.getsignal(number) == signal.SIG_DFL]
        for number in self._mine:
            signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number in self._mine:
            signal.signal(number, signal.SIG_DFL)

    def begin(self) -> None:
        """The session is there: what is done is worth saving."""
        self._begun, inner = True, self.world.beat

        def beat(doing: str = "", allow: float = 0.0) -> None:
            inner(doing, allow)
            if self.world.may_stop and threading.current_thread() is threading.main_thread():
                self.world.stop_if(self.world.signal)

        self.world.beat, self.world.may_stop = beat, self.world.size == 1

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.world.signal = self.world.signal or number
        for terminal in self._terminals:
            if not os.isatty(terminal):  # it is gone: writing to it would end the run before it has saved
                with open(os.devnull, "w") as nowhere:
                    os.dup2(nowhere.fileno(), terminal)
        if not self._begun:
            self.world.stop_if(number)
