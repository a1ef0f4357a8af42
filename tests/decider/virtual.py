"""An event loop without waiting: its clock jumps to the next timer when nothing else is left to do."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any


class _Jumping(selectors.DefaultSelector):
    def __init__(self, jump: Callable[[float], None]) -> None:
        super().__init__()
        self._jump = jump

    def select(self, timeout: float | None = None) -> list[Any]:
        found = super().select(0)
        if not found:
            assert timeout is not None, "nothing is ready and no timer is set: it would wait for ever"
            self._jump(timeout)
        return found


class VirtualLoop(asyncio.SelectorEventLoop):
    """For coroutines that wait for each other and for time only. Turns of the loop take none."""

    def __init__(self) -> None:
        self._now_s = self.worked_until_s = 1_000.0
        super().__init__(_Jumping(self._jump))

    def time(self) -> float:
        return self._now_s

    def _jump(self, seconds: float) -> None:
        self._now_s += seconds

    def work(self, seconds: float) -> None:
        """Let time pass in which nobody has a turn; `worked_until_s` is the end of the last such time."""
        if seconds > 0:
            self._now_s += seconds
            self.worked_until_s = self._now_s


def run(main: Callable[[VirtualLoop], Coroutine[Any, Any, Any]]) -> Any:
    """What `main` returns in a loop of its own."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, VirtualLoop)
        return runner.run(main(loop))
