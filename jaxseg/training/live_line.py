"""The console output of a run: messages that stay, and a line on a terminal that is redrawn."""

from rich.console import Console
from rich.live import Live
from rich.text import Text


class LiveLine:
    """Prints messages and keeps one status line at the bottom of a terminal."""

    def __init__(self, steps: int, step: int = 0):
        """Prepare the line 'step `step`/`steps`', which appears with the first `update`."""
        self._steps, self._step, self._status = steps, step, ""
        self._console = Console(highlight=False, soft_wrap=True)
        self._live: Live | None = None

    def print(self, text: str) -> None:
        """Print one or more lines that stay on the screen."""
        self._console.print(Text(text))

    def update(self, step: int) -> None:
        """Show the number of finished steps if standard output is a terminal."""
        self._step = step
        if self._console.is_terminal and self._live is None:
            self._live = Live(
                console=self._console,
                refresh_per_second=4,
                transient=True,
                get_renderable=self._render,
            )
            self._live.start()

    def set_status(self, step: int, status: str) -> None:
        """Show `status` after the step; without a terminal, print it as a line."""
        self._step, self._status = step, status
        if not self._console.is_terminal:
            self.print(f"step {step}/{self._steps}{status}")

    def stop(self) -> None:
        """Take the line off the screen until the next `update`."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _render(self) -> Text:
        return Text(
            f"step {self._step}/{self._steps}{self._status}", no_wrap=True, overflow="ellipsis"
        )
