"""Progress bars."""

from __future__ import annotations

from tqdm import tqdm


class Bar(tqdm):
    """A progress bar without tqdm's monitor thread, whose start can wait for ever if memory has run out."""

    monitor_interval = 0
