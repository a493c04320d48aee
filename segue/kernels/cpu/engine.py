"""The engine that runs a program: the loop over its operations, and the team of threads that runs them together.

A team is the calling thread and helpers, which spin for a moment between calls and then sleep. A call uses the helpers
that are awake and never waits for one that might not come, so it cannot hang, however few cores there are.
"""

from __future__ import annotations

import atexit
import os
import threading

import numpy as np
from numba import njit

from segue.kernels.cpu.cache import compile_cached, mark_compiled
from segue.kernels.cpu.ops import attention, base, channels, commits, linear, matrices, quantised, recall, recur, rows
from segue.kernels.cpu.program import (
    ADD,
    ANGLES,
    ATTEND,
    BARRIER,
    COLUMNS,
    CONVOLVE,
    COUNT,
    DECAY,
    DENSE,
    DIAGONAL,
    EMBED,
    EXPONENTIAL,
    FILTER,
    JOB,
    LINEAR,
    LOW_RANK,
    MAP,
    MARK_PROMPT,
    MATRIX,
    MODES,
    MOVE,
    MULTIPLY,
    NODES,
    NORM,
    NORMALISE,
    OPERATIONS,
    POLYNOMIAL,
    PREFIXED,
    QUANTISED,
    RECALL,
    RECUR,
    SCAN,
    STABILISE,
    STORE,
    TEAM,
    TURN,
    WORK,
    aligned,
)
from segue.kernels.cpu.simd import load, longs, relax, store, swap_if, yield_core

# What a helper is doing, as its word in the mail says.
IDLE, CALLED, BUSY, ASLEEP, WAKING = range(5)
LINE = 128  # bytes of mail per helper: state, seat, job; two cache lines, since cores prefetch them in pairs
PATIENCE = 2_000  # least spins for a helper that is just finishing or waking up ...
WORTH = 1 << 14  # ... and bytes of weights for which to wait one more: a twentieth of the time they take, at the most
LINGER = 20_000  # spins of a helper without work before it sleeps, about a millisecond
HELPERS = 63
ALONE = 50  # calls that are made without helpers once their cores turned out to be taken by other processes


@njit(inline="always")  # into its one caller: all the operations are optimised again wherever they are linked in
def run(job, me):
    """Run thread `me`'s share of all operations."""
    team = job[TEAM]
    for index in range(job[COUNT]):
        op = longs(job[OPERATIONS] + 8 * COLUMNS * index, 2 * COLUMNS)  # and the one behind it
        code = op[0]
        if code == LINEAR:
            linear.linear(job, op, me, team)
        elif code == NORM:
            rows.norm(job, op, me, team)
        elif code == STORE:
            attention.store_kv(job, op, me, team)
        elif code == ATTEND:
            attention.attend(job, op, me, team)
        elif code == CONVOLVE:
            channels.convolve(job, op, me, team)
        elif code == SCAN:
            channels.scan(job, op, me, team)
        elif code == DECAY:
            rows.decay(job, op, me, team)
        elif code == MATRIX:
            matrices.matrix(job, op, me, team)
        elif code == NORMALISE:
            matrices.normalise(job, op, me, team)
        elif code == STABILISE:
            matrices.stabilise(job, op, me, team)
        elif code == DIAGONAL:
            channels.diagonal(job, op, me, team)
        elif code == MODES:
            channels.modes(job, op, me, team)
        elif code == LOW_RANK:
            channels.low_rank(job, op, me, team)
        elif code == DENSE:
            channels.dense(job, op, me, team)
        elif code == FILTER:
            channels.filter(job, op, me, team)
        elif code == QUANTISED:
            quantised.quantised(job, op, me, team)
        elif code == PREFIXED:
            matrices.prefixed(job, op, me, team)
        elif code == RECALL:
            recall.recall(job, op, me, team)
        elif code == MARK_PROMPT:
            rows.mark_prompt(job, op, me, team)
        elif code == RECUR:
            recur.recur(job, op, me, team)
        elif code == MAP:
            rows.map(job, op, me, team)
        elif code == MULTIPLY:
            rows.scale(job, op, me, team)
        elif code == ADD:
            rows.add_rows(job, op, me, team)
        elif code == EMBED:
            rows.embed(job, op, me, team)
        elif code == ANGLES:
            rows.angles(job, op, me, team)
        elif code == MOVE:
            commits.move(job, op, me, team)
        elif code == POLYNOMIAL:
            rows.polynomial(job, op, me, team)
        elif code == EXPONENTIAL:
            rows.exponential(job, op, me, team)
        elif code == TURN:
            rows.cosine_features(job, op, me, team)
        else:
            commits.pick(job, op, me, team)
        if index + 1 < job[COUNT] and op[COLUMNS] == LINEAR:
            linear.prefetch_weights(job, op[COLUMNS:], me, team)
        own = op[14] % team == 0 if code == STORE else code == LINEAR and linear.made_alone(job, op, team)
        if not own:  # else each thread goes on with the heads whose queries, keys and values it has made
            base.barrier(job, team)


@compile_cached
def run_or_help(mail, helper, helpers, job):
    """Lead a call (helper = 0) with up to `helpers` others, or help until there was nothing to do for a while.

    One function for both, so that the operations are compiled once. `mail`, `job`: addresses.
    """
    mailbox = mail + LINE * helper
    if helper:
        store(mailbox, IDLE)
    while True:
        seat = 0
        if helper:
            spins = 0
            while load(mailbox) != BUSY:
                spins += 1
                relax()
                if spins % 64 == 0:
                    yield_core()
                if spins > LINGER and swap_if(mailbox, IDLE, ASLEEP):
                    return
            message = longs(mailbox, 3)
            seat, job = message[1], message[2]
        else:
            team, patience = 1, max(PATIENCE, longs(job, JOB)[WORK] // WORTH)
            for other in range(1, helpers + 1):
                other_mailbox = mail + LINE * other
                spins = 0
                while (load(other_mailbox) == BUSY or load(other_mailbox) == WAKING) and spins < patience:
                    spins += 1
                    relax()
                if swap_if(other_mailbox, IDLE, CALLED):
                    message = longs(other_mailbox, 3)
                    message[1], message[2] = team, job
                    team += 1
            longs(job, JOB)[TEAM] = team
            for other in range(1, helpers + 1):
                if load(mail + LINE * other) == CALLED:
                    store(mail + LINE * other, BUSY)
        run(longs(job, JOB), seat)
        if helper == 0:
            return
        store(mailbox, IDLE)


class Team:
    """The threads of this process that run programs: Python threads, which release the lock while they compute."""

    def __init__(self) -> None:
        self.mail = aligned((HELPERS + 1, LINE // 8), np.int64)
        self.address = self.mail.ctypes.data
        self.state = self.mail[:, 0]
        self.barrier = aligned((4 * base.LINE // 8,), np.int64)
        self.stalls = self.barrier[base.STALLS // 8 :]
        self.bells: list[threading.Semaphore] = []
        self.threads: list[threading.Thread] = []
        self.lock = threading.Lock()
        self.alone = 0
        self.closing = False

    def run(self, job: np.ndarray, address: int, threads: int) -> None:
        """Run a job (and its address) with up to `threads` threads. Callable from several Python threads at once: one
        of them gets the helpers, the others compute alone."""
        if threads == 1 or self.alone or not self.lock.acquire(blocking=False):
            self.alone = max(self.alone - 1, 0)
            run_or_help(self.address, 0, 0, address)
            return
        try:
            helpers = min(threads - 1, HELPERS)
            while len(self.threads) < helpers:
                self._add_helper()
            for helper in range(1, helpers + 1):
                if self.state[helper] == ASLEEP:
                    self.state[helper] = WAKING
                    self.bells[helper - 1].release()
            job[BARRIER], self.stalls[0] = self.barrier.ctypes.data, 0
            run_or_help(self.address, 0, helpers, address)
            # A helper that was thrown off its core holds up everybody at every operation: better alone, for a while.
            if self.stalls[0] > job[COUNT] // 8 and job[NODES] <= 32:
                self.alone = ALONE
        finally:
            self.lock.release()

    def _add_helper(self) -> None:
        helper = len(self.threads) + 1
        self.bells.append(threading.Semaphore(0))
        self.state[helper] = WAKING
        self.threads.append(threading.Thread(target=self._help, args=(helper,), name=f"segue-{helper}", daemon=True))
        self.threads[-1].start()

    def _help(self, helper: int) -> None:
        while not self.closing:
            run_or_help(self.address, helper, 0, 0)
            self.bells[helper - 1].acquire()

    def close(self) -> None:
        """End the helpers, before the interpreter frees the compiled code that they run."""
        self.closing = True
        for bell in self.bells:
            bell.release()
        for thread in self.threads:
            thread.join(timeout=1)


TEAM_OF_PROCESS = Team()


def _forget() -> None:
    global TEAM_OF_PROCESS
    TEAM_OF_PROCESS = Team()  # threads do not survive a fork


def get_team() -> Team:
    return TEAM_OF_PROCESS


def load_engine() -> None:
    """Load the compiled code from disk, or compile it, by a call with nothing to do."""
    job = aligned((JOB,), np.int64)
    run_or_help(get_team().address, 0, 0, job.ctypes.data)
    mark_compiled()


atexit.register(lambda: get_team().close())
os.register_at_fork(after_in_child=_forget)
