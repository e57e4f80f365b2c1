"""The thread that decodes: all running requests take each step together, those that read by the same method in one native call.

A row of a native step gives the same bits alone and among others, so an answer does not depend on who else asks. On SmolLM2-135M with one
thread a step of four rows takes 1.5 to 2.3 times as long as one of a single row (benchmarks/serving); taking turns it would be four times.
Prompts are read in pieces between steps, so that a long one does not stop the others.
"""

from __future__ import annotations

import logging
import statistics
import threading
import time
from collections import deque

import numpy as np

from ..errors import SparsightError
from ..models import LoadedModel
from ..runtime.decoder import Decoder
from ..runtime.encode import end_tokens
from ..runtime.memory import available_bytes, cache_bytes
from ..runtime.plan import Plan
from .errors import ApiError, draining, overloaded, too_slow
from .job import Job, Outcome
from .readings import Reading, reading_bytes
from .settings import Settings
from .tally import Tally

_LOG = logging.getLogger(__name__)
_PREFILL_TOKENS = 64
_MOST_LENGTHS = 32


class Engine:
    """Decodes requests until it is closed.

    Parameters
    ----------
    loaded : LoadedModel
    decoder : Decoder
        Of that model; nobody else uses it meanwhile.
    settings : Settings

    Attributes
    ----------
    tally : Tally
        Counts for those who watch.
    """

    def __init__(self, loaded: LoadedModel, decoder: Decoder, settings: Settings) -> None:
        self.loaded, self.decoder, self.settings = loaded, decoder, settings
        self.ends = end_tokens(loaded)
        self.tally = Tally()
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._changed = threading.Condition()
        self._closing = False
        self._closed_at = float("inf")
        self._plans: dict[tuple, Plan] = {}
        self._thread = threading.Thread(target=self._loop, name="sparsight-engine", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Put a job into the queue.

        Raises
        ------
        ApiError
            If the queue is full, or the engine is closing.
        """
        with self._changed:
            if self._closing:
                raise draining()
            if len(self._waiting) + len(self._running) >= self.settings.max_running + self.settings.max_waiting:
                raise overloaded(self.settings.max_running + self.settings.max_waiting)
            self._waiting.append(job)
            self._changed.notify_all()

    def cancel(self, job: Job) -> None:
        """Have a job leave within a step; it tells nothing more."""
        with self._changed:
            job.cancelled = True
            self._changed.notify_all()

    def drain(self, seconds: float) -> None:
        """Take nothing new; what is not done after `seconds` is ended with an error."""
        with self._changed:
            self._closing = True
            self._closed_at = min(self._closed_at, time.monotonic() + seconds)
            self._changed.notify_all()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until a drained engine has ended; whether it has."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    @property
    def draining(self) -> bool:
        """Whether it takes no more requests and ends when those that run are done."""
        return self._closing

    @property
    def load(self) -> tuple[int, int]:
        """Jobs that run, and that wait."""
        return len(self._running), len(self._waiting)

    @property
    def budget_in_use(self) -> tuple[int, int]:
        """Tokens that a KV head of all running sequences reads in a step, and holds."""
        lengths = [(job, held.length) for job in list(self._running) if (held := job.sequence) is not None]
        budgets = [length if job.ask.plan is None else job.ask.plan.budget.while_generating(length) for job, length in lengths]
        return sum(budgets), sum(length for _, length in lengths)

    def _loop(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._running or self._closing):
                    self._changed.wait()
                self._drop()
                self._admit()
                if self._closing and not self._waiting and not self._running:
                    return
            try:
                self._turn()
            except Exception as error:  # of the program: it ends the answers it came with, not the server
                _LOG.error("fault in the engine: %s: %s", type(error).__name__, error)
                for job in self._running:
                    self._fail(job, ApiError(500, "the server failed to answer; its log says why", code="internal_error"))
            with self._changed:
                self._running = [job for job in self._running if job.finish_reason is None]

    def _drop(self) -> None:
        """Let go of what was cancelled, has taken too long, or is still there when the time for draining is over."""
        now = time.monotonic()
        for job in [*self._waiting, *self._running]:
            if job.cancelled:
                job.finish_reason, job.sequence, job.reading = "cancelled", None, None
                self.tally.cancelled += 1
            elif now >= self._closed_at:
                self._fail(job, draining())
            elif now >= job.deadline:
                self._fail(job, too_slow(job.ask.seconds))
        self._waiting = deque(job for job in self._waiting if job.finish_reason is None)
        self._running = [job for job in self._running if job.finish_reason is None]

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self.settings.max_running:
            job = self._waiting[0]
            needed = self._needed(job)
            free = available_bytes(self.loaded.model.device) - sum(map(self._promised, self._running))
            if needed > free and self._running:
                return
            self._waiting.popleft()
            if needed > free:
                message = f"{job.tokens:,} tokens need {needed / 1e9:.3g} GB of memory, but {free / 1e9:.3g} GB are free; ask for fewer"
                self._fail(job, ApiError(503, message, code="out_of_memory"))
                continue
            job.sequence, job.started = self.decoder.new_sequence(), time.monotonic()
            if job.ask.record:
                plan = job.ask.plan
                chosen = ("dense", None) if plan is None else (plan.selector.name, str(plan.budget))
                job.reading = Reading(self.loaded.anatomy, list(job.ask.ids), len(job.ask.ids), self.loaded.anatomy.full_attention, *chosen)
            self._running.append(job)

    def _needed(self, job: Job) -> int:
        """Bytes that a job may come to use, what it keeps of its reading among them."""
        ask, anatomy = job.ask, self.loaded.anatomy
        needed = cache_bytes(self.loaded, ask.plan, 1, job.tokens).total
        if ask.record:
            budget = 0 if ask.plan is None else ask.plan.budget.while_generating(job.tokens)
            sizes = len(anatomy.full_attention), len(ask.ids), ask.decoding.max_new_tokens, budget, self.loaded.model.dtype.itemsize
            needed += reading_bytes(anatomy, *sizes)
        return needed

    def _promised(self, job: Job) -> int:
        """Bytes that a running job may still come to use: memory that is not written yet looks free."""
        return max(0, self._needed(job) - job.sequence.kv_bytes - job.sequence.index_bytes)

    def _turn(self) -> None:
        """A piece of the prompt that had least so far, so that a short one need not wait for a long one; and a step of all that decodes."""
        reading = min((job for job in self._running if not job.new), key=lambda job: job.sequence.length, default=None)
        if reading is not None:
            self._attempt([reading], lambda: self._prefill(reading))
        groups: dict[object, list[Job]] = {}
        for job in self._running:
            if job.new and job.finish_reason is None:
                groups.setdefault(None if job.ask.plan is None else job.ask.plan.selector, []).append(job)
        for group in groups.values():
            self._attempt(group, lambda group=group: self._step(group))

    def _attempt(self, jobs: list[Job], work) -> None:
        try:
            work()
        except SparsightError as error:
            for job in jobs:
                self._fail(job, ApiError(500, str(error), code="model_error"))

    def _prefill(self, job: Job) -> None:
        ids, sequence, decoder = job.ask.ids, job.sequence, self.decoder
        record = job.ask.record and not decoder.graph_prefill
        before = time.monotonic()
        # The graph rounds a prompt differently in pieces than whole. Recorded, the last token takes a step of its own, of the same bits.
        end = len(ids) if decoder.graph_prefill else min(sequence.length + _PREFILL_TOKENS, len(ids))
        logits = None
        if record and end == len(ids):
            if sequence.length < len(ids) - 1:
                decoder.prefill(sequence, ids[sequence.length : -1], job.tokens)
            sequence.reserve(job.tokens)
            step = decoder.step([sequence], ids[-1:], record=True, queries=True)
            job.reading.add(step)
            logits = step.logits[0]
        else:
            logits = decoder.prefill(sequence, ids[sequence.length : end], job.tokens)
            if job.ask.record and end == len(ids):
                job.reading.add(None)
        seconds = time.monotonic() - before
        job.prefill_seconds += seconds
        self.tally.prefill_seconds += seconds
        if end == len(ids):
            self.tally.prompt_tokens += len(ids)
            self._take(job, logits)

    def _step(self, jobs: list[Job]) -> None:
        record = any(job.ask.record for job in jobs)
        before = time.monotonic()
        step = self.decoder.step([job.sequence for job in jobs], [job.new[-1] for job in jobs], self._plan_of(jobs), record, queries=record)
        seconds = time.monotonic() - before
        self.tally.decode_seconds += seconds
        for row, job in enumerate(jobs):
            job.steps.append(seconds)
            if step.budgets[row] < step.lengths[row]:
                job.read += step.budgets[row]
                job.held += step.lengths[row]
            if job.ask.record:
                job.reading.add(step, row)
            self._take(job, step.logits[row])

    def _plan_of(self, jobs: list[Job]) -> Plan | None:
        """One plan for the rows of a step, each with its own budget."""
        first = jobs[0].ask.plan
        if first is None or len(jobs) == 1:
            return first
        budgets = tuple(job.ask.plan.budget for job in jobs)
        key = (id(first.selector), budgets)
        if key not in self._plans:
            if len(self._plans) > 256:
                self._plans.clear()
            self._plans[key] = Plan(first.selector, budgets, first.rule)
        return self._plans[key]

    def _take(self, job: Job, logits: np.ndarray) -> None:
        job.take(logits, self.ends)
        self.tally.token()
        if job.finish_reason is not None:
            self._finish(job)

    def _finish(self, job: Job) -> None:
        now = time.monotonic()
        ids = job.answer_ids(self.ends)
        if job.reading is not None:
            job.reading.ids += ids
            job.reading.close(job.sequence)
        self.tally.finished += 1
        share = job.read / job.held if job.held else 1.0
        median = statistics.median(job.steps) if job.steps else 0.0
        waited, prefill = job.started - job.asked, job.prefill_seconds
        lengths, plan = (job.sequence.length, len(job.ask.ids) + 1), job.ask.plan
        job.sequence = None
        each = self._bytes_per_token(*lengths, plan)
        job.emit(Outcome(job.finish_reason, ids, len(job.ask.ids), share, each, median, waited, prefill, now - job.asked, job.reading))

    def _bytes_per_token(self, last: int, first: int, plan: Plan | None) -> float:
        """Mean over the decode steps of an answer, or some of them, evenly spaced."""
        count = min(max(last - first + 1, 1), _MOST_LENGTHS)
        lengths = np.linspace(min(first, last), last, count).astype(int).tolist()
        return float(np.mean([self.decoder.bytes_per_token(length, plan) for length in lengths]))

    def _fail(self, job: Job, error: ApiError) -> None:
        if job.finish_reason is not None:
            return
        job.finish_reason, job.sequence, job.reading = "failed", None, None
        self.tally.failed += 1
        job.emit(error)
