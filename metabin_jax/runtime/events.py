"""TensorBoard's scalars, written by the calling thread: a writer with a queue can stop a training for ever."""

import contextlib
import os
import socket
import sys
import time
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter


class Events:
    """An events file in `folder`. Steps of earlier files from `first` on are void. The first error ends the writing."""

    def __init__(self, folder: Path, first: int):
        self._writer: RecordWriter | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            name = f"events.out.tfevents.{time.time_ns() // 10**9:010d}.{socket.gethostname()}.{os.getpid()}"
            number = sum(path.name.startswith(name) for path in folder.iterdir())
            self._writer = RecordWriter(str(folder / f"{name}.{number}"))
        except OSError as error:
            self._off(error)
        self._write(Event(file_version="brain.Event:2"))
        self._write(Event(step=first, session_log=SessionLog(status=SessionLog.START)))

    def add(self, step: int, scalars: dict[str, float]) -> None:
        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self._write(Event(step=step, summary=Summary(value=values)))

    def close(self) -> None:
        if self._writer:
            with contextlib.suppress(OSError):  # every event is on the disk already
                self._writer.close()

    def _write(self, event: Event) -> None:
        if not self._writer:
            return
        event.wall_time = time.time()
        try:
            self._writer.write(event.SerializeToString())
            self._writer.flush()
        except OSError as error:
            self._off(error)

    def _off(self, error: OSError) -> None:
        if self._writer:
            with contextlib.suppress(OSError):
                self._writer.close()
        self._writer = None
        print(
            f"TensorBoard's events are no longer written ({error}); metrics.jsonl has the same numbers", file=sys.stderr
        )
