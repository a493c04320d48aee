"""n-gram counts of every order over a token stream, as a suffix array of contexts; compiled with Numba.

Every position of a training stream is one observation: a context (the tokens before it, back to the start of its
document) and the token that followed. Sorting the positions by context, newest token first, puts all observations of
one context of *any* order next to each other, and the run of a longer context inside the run of the shorter one. So one
array of positions is a count table of every order at once; a lookup is a chain of narrowing binary searches.

Runs longer than `LONG_RUN` have their counts stored in advance; shorter ones are counted on demand.
"""

# mypy: disallow-untyped-defs=False
# (the arguments are typed by Numba, from the calls)

from __future__ import annotations

import threading
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from segue.errors import SegueError
from segue.kernels.jit import jit as cached_jit

# To compile quickly: divisions are as in C, arrays are copied in loops, and loops over levels have a length that the
# compiler does not know, so that it does not unroll them.
jit = partial(cached_jit, error_model="numpy")

LONG_RUN = 48  # observations; shorter runs are counted on demand
MAX_STORED_ORDER = 12  # counts of higher orders are never stored: their long runs are few, and mostly boilerplate


class Tables(NamedTuple):
    """Sorted contexts of a token stream of n observations; see `build`.

    stream: (N,) int32, documents one after the other, each preceded by the mark, whose id is V.
    order: (n,) int32, stream positions sorted by the tokens before them. following: (n,) int32, stream[order].
    common: (n,) uint8, how many tokens of context each shares with its predecessor (0 for the first).
    first: (V + 2,) int32, where in `order` the contexts with newest token v begin.
    node_level: (levels + 1,) int32, where each order's stored runs begin in `node_left`, their left ends, sorted.
    node_entries: (nodes + 1,) int64, where each stored run begins in entry_token / entry_count / entry_kinds: the
        followers, how often each occurred, and after how many distinct contexts one token longer.
    """

    stream: np.ndarray
    order: np.ndarray
    following: np.ndarray
    common: np.ndarray
    first: np.ndarray
    node_level: np.ndarray
    node_left: np.ndarray
    node_entries: np.ndarray
    entry_token: np.ndarray
    entry_count: np.ndarray
    entry_kinds: np.ndarray


@jit()
def _document_offsets(stream, mark):
    """The distance from each position back to the mark that begins its document."""
    age = np.empty(stream.size, np.int32)
    last = 0
    for i in range(stream.size):
        if stream[i] == mark:
            last = i
        age[i] = i - last
    return age


@jit()
def _sort_newest(stream, age, mark, depth):
    """Stable counting sort of the observed positions on the token at distance `depth`, ..., 1."""
    n = 0
    for i in range(stream.size):
        if stream[i] != mark:
            n += 1
    order = np.empty(n, np.int32)
    other = np.empty(n, np.int32)
    n = 0
    for i in range(stream.size):
        if stream[i] != mark:
            order[n] = i
            n += 1
    slots = np.empty(mark + 3, np.int64)
    for d in range(depth, 0, -1):
        slots[:] = 0
        for at in order:  # before the mark all contexts are equal
            slots[(stream[at - d] if d <= age[at] else 0) + 1] += 1
        for v in range(1, mark + 3):
            slots[v] += slots[v - 1]
        for at in order:
            v = stream[at - d] if d <= age[at] else 0
            other[slots[v]] = at
            slots[v] += 1
        order, other = other, order
    return order


@jit()
def _sorts_before(stream, age, a, b, d, depth):
    """Whether the context of position a sorts before that of b; both agree on the d newest tokens."""
    while d < depth:
        d += 1
        x = stream[a - d] if d <= age[a] else -1
        y = stream[b - d] if d <= age[b] else -1
        if x != y:
            return x < y
        if x < 0:
            break
    return False


@jit()
def _sort_deeper(stream, age, order, depth, known):
    """Finish a sort on the `known` newest tokens: three-way radix quicksort of each run, token by token."""
    low_of, high_of, level_of = np.empty(4096, np.int64), np.empty(4096, np.int64), np.empty(4096, np.int64)
    left = 0
    while left < order.size:
        right = left + 1
        while right < order.size:
            a, b, k = order[right - 1], order[right], 0
            while k < known and stream[a - k - 1] == stream[b - k - 1]:
                k += 1
                if k == age[a] or k == age[b]:
                    break
            if k < known and not (k == age[a] and k == age[b]):
                break
            right += 1
        top = 0
        low_of[0], high_of[0], level_of[0] = left, right, known
        left = right
        while top >= 0:
            low, high, d = low_of[top], high_of[top], level_of[top]
            top -= 1
            if high - low < 2 or d >= depth:
                continue
            if high - low <= 10 or top > 4000:
                for m in range(low + 1, high):
                    a, j = order[m], m
                    while j > low and _sorts_before(stream, age, a, order[j - 1], d, depth):
                        order[j] = order[j - 1]
                        j -= 1
                    order[j] = a
                continue
            middle = order[(low + high) >> 1]
            pivot = stream[middle - d - 1] if d < age[middle] else -1
            less, i, more = low, low, high
            while i < more:
                a = order[i]
                x = stream[a - d - 1] if d < age[a] else -1
                if x < pivot:
                    order[i], order[less] = order[less], a
                    less += 1
                    i += 1
                elif x > pivot:
                    more -= 1
                    order[i], order[more] = order[more], a
                else:
                    i += 1
            for begin, end, level in ((low, less, d), (more, high, d), (less, more, d + 1 if pivot >= 0 else depth)):
                if end - begin > 1:
                    top += 1
                    low_of[top], high_of[top], level_of[top] = begin, end, level


@jit()
def _shared_lengths(stream, order, mark, depth):
    """How many tokens of context each observation shares with the one before it, at most `depth`."""
    common = np.zeros(order.size, np.uint8)
    for m in range(1, order.size):
        a, b = order[m - 1], order[m]
        k = 0
        while k < depth and stream[a - k - 1] == stream[b - k - 1]:
            k += 1
            if stream[a - k] == mark:  # both documents begin here, so the contexts are equal
                k = depth
        common[m] = k
    return common


@jit()
def _count_followers(following, common, left, right, level, count, kinds, seen, tokens):
    """Count the followers of one run into the scratch arrays (V,), which must be zero; returns the number of distinct
    followers, which are listed in `tokens`."""
    distinct = 0
    group = 1
    for m in range(left, right):
        if m > left and common[m] <= level:
            group += 1
        x = following[m]
        if count[x] == 0:
            tokens[distinct] = x
            distinct += 1
        count[x] += 1
        if seen[x] != group:
            seen[x] = group
            kinds[x] += 1
    for j in range(distinct):
        seen[tokens[j]] = 0
    return distinct


@jit()
def _find_long_runs(common, levels, level_start, ends):
    """Write the ends (m, 2) of the long runs of orders 0..levels, order by order, as far as they fit; returns how many
    there are."""
    nodes = 0
    for level in range(levels + 1):
        level_start[level] = nodes
        left = 0
        while left < common.size:
            right = left + 1
            while right < common.size and common[right] >= level:
                right += 1
            if right - left > LONG_RUN:
                if nodes < len(ends):
                    ends[nodes, 0], ends[nodes, 1] = left, right
                nodes += 1
            left = right
    level_start[levels + 1] = nodes
    return nodes


@jit()
def _store_followers(following, common, mark, level_start, ends):
    """Count the followers of all long runs."""
    count, kinds = np.zeros(mark, np.int32), np.zeros(mark, np.int32)
    seen, tokens = np.zeros(mark, np.int32), np.empty(mark, np.int32)
    entries = np.zeros(len(ends) + 1, np.int64)
    lists = np.empty((3, 1 << 16), np.int32)
    used = 0
    for level in range(level_start.size - 1):
        for node in range(level_start[level], level_start[level + 1]):
            distinct = _count_followers(following, common, ends[node, 0], ends[node, 1], level, count, kinds, seen,
                                        tokens)
            if used + distinct > lists.shape[1]:
                grown = np.empty((3, 2 * (used + distinct)), np.int32)
                for kind in range(3):
                    for e in range(used):
                        grown[kind, e] = lists[kind, e]
                lists = grown
            for x in tokens[:distinct]:
                lists[0, used] = x
                lists[1, used] = count[x]
                lists[2, used] = kinds[x]
                count[x] = 0
                kinds[x] = 0
                used += 1
            entries[node + 1] = used
    return entries, lists[0, :used].copy(), lists[1, :used].copy(), lists[2, :used].copy()


def build(stream: np.ndarray, vocabulary: int, depth: int) -> Tables:
    """Make the tables of a marked stream (see `Tables`), sorted by contexts of up to `depth` tokens (at most 255)."""
    stream = np.ascontiguousarray(stream, np.int32)
    age = _document_offsets(stream, vocabulary)
    order = _sort_newest(stream, age, vocabulary, min(depth, 2))
    _sort_deeper(stream, age, order, depth, min(depth, 2))
    return restore(stream, order, _shared_lengths(stream, order, vocabulary, depth), vocabulary, depth)


def restore(stream: np.ndarray, order: np.ndarray, common: np.ndarray, vocabulary: int, depth: int) -> Tables:
    """Make the tables from the arrays that are stored of them. A SegueError if they do not fit together: the kernels
    index by their values unchecked."""
    stream = np.ascontiguousarray(stream, np.int32)
    if order.size and (order.min() < 1 or order.max() >= stream.size or common.size != order.size):
        raise SegueError("stored counts are damaged: their positions do not fit their stream")
    following = stream[order]
    if order.size and (stream[0] != vocabulary or following.min() < 0 or following.max() >= vocabulary):
        raise SegueError(f"stored counts are damaged: their stream is not of a vocabulary of {vocabulary}")
    first = np.searchsorted(stream[order - 1], np.arange(vocabulary + 2)).astype(np.int32)
    levels = min(depth, MAX_STORED_ORDER)
    level_start = np.zeros(levels + 2, np.int32)
    ends = np.empty((_find_long_runs(common, levels, level_start, np.empty((0, 2), np.int32)), 2), np.int32)
    _find_long_runs(common, levels, level_start, ends)
    return Tables(stream, order, following, common, first, level_start, ends[:, 0].copy(),
                  *_store_followers(following, common, vocabulary, level_start, ends))


@jit()
def _narrow_run(stream, order, left, right, distance, token):
    """The part of a run in which the token `distance` before the observation is `token`."""
    low, high = left, right
    while low < high:
        middle = (low + high) >> 1
        if stream[order[middle] - distance] < token:
            low = middle + 1
        else:
            high = middle
    left, high = low, right
    # A galloping search for the right end, since most runs are much shorter than the rest of their parent.
    step = 1
    while left + step < high and stream[order[left + step] - distance] == token:
        step <<= 1
    low = left + (step >> 1)
    high = min(high, left + step)
    while low < high:
        middle = (low + high) >> 1
        if stream[order[middle] - distance] <= token:
            low = middle + 1
        else:
            high = middle
    return left, low


@jit()
def find_runs(tables, context, whole, limit, left, right):
    """Find the runs of a context (its newest token last) of every order: left[k], right[k] for k = 0..the returned
    order, the highest that occurred.

    whole: the context reaches back to the start of its document, and the mark there counts as one more (oldest) token.
    limit: the highest order to look for.
    """
    mark = tables.first.size - 2
    left[0], right[0] = 0, tables.order.size
    k = 0
    while k < limit:
        if k < context.size:
            token = context[context.size - 1 - k]
            if token < 0 or token >= mark:
                break
        elif whole and k == context.size:
            token = mark
        else:
            break
        if k == 0:
            low, high = tables.first[token], tables.first[token + 1]
        else:
            low, high = _narrow_run(tables.stream, tables.order, left[k], right[k], k + 1, token)
        if low >= high:
            break
        k += 1
        left[k], right[k] = low, high
    return k


@jit()
def find_node(tables, level, left, right):
    """The index of a run's stored counts, or -1 if it must be counted on demand."""
    if right - left <= LONG_RUN or level + 1 >= tables.node_level.size:
        return -1
    low, high = tables.node_level[level], tables.node_level[level + 1]
    while low < high:
        middle = (low + high) >> 1
        if tables.node_left[middle] < left:
            low = middle + 1
        else:
            high = middle
    return low


# ------------------------------------------------------------------------------------------------------------------
# The blend. A level is an order of the corpus or of the sequence's own past; `collect_counts` lists the followers of
# one context level by level, with their counts.

CORPUS_ORDERS = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8])  # one more level holds the longest context found
HISTORY_ORDERS = np.array([0, 1, 2, 3, 4, 6])  # of the sequence's own past
LEVELS = CORPUS_ORDERS.size + 1 + HISTORY_ORDERS.size
FEATURES = 20  # of a level, inputs of the networks of `Trust`
MAX_MATCH = 32  # tokens of the longest context


class Workspace(NamedTuple):
    """Scratch memory of one thread, and the results of `collect_counts`.

    found: (LEVELS, 5) float64: observations n, distinct followers t, followers seen once, total of `second` weights,
        age of the latest observation (own past only). order: (LEVELS,) int64, the order of each level.
    bounds: (LEVELS + 1,) int64, where each level begins in token / count / second: its followers, how often each
        occurred, and its second weight (corpus: after how many distinct longer contexts; own past: 1 for the latest
        follower, else 0).
    depth: (2,) int64, the longest context found in the corpus and in the own past.
    """

    seen_count: np.ndarray
    seen_kinds: np.ndarray
    seen_group: np.ndarray
    touched: np.ndarray
    left: np.ndarray
    right: np.ndarray
    matches: np.ndarray
    found: np.ndarray
    order: np.ndarray
    bounds: np.ndarray
    depth: np.ndarray
    token: np.ndarray
    count: np.ndarray  # type: ignore[assignment]  # hides tuple.count
    second: np.ndarray


def workspace(vocabulary: int, window: int, limit: int = MAX_MATCH) -> Workspace:
    """This thread's scratch memory for the functions below, some of which run without the interpreter's lock."""
    return _workspace(threading.get_ident(), vocabulary, window, limit)


@lru_cache(maxsize=8)
def _workspace(thread: int, vocabulary: int, window: int, limit: int) -> Workspace:
    whole = np.zeros(vocabulary, np.int32)
    room = vocabulary * LEVELS
    return Workspace(whole, whole.copy(), whole.copy(), whole.copy(), np.empty(limit + 2, np.int64),
                     np.empty(limit + 2, np.int64), np.empty((window + 1, 2), np.int32), np.zeros((LEVELS, 5)),
                     np.zeros(LEVELS, np.int64), np.zeros(LEVELS + 1, np.int64), np.zeros(2, np.int64),
                     np.empty(room, np.int32), np.empty(room, np.int32), np.empty(room, np.int32))


@jit()
def append_followers(tables, level, left, right, work, used):
    """Append the followers of a run to the lists of `work` from `used` on; returns where they end."""
    node = find_node(tables, level, left, right)
    if node >= 0:
        begin, end = tables.node_entries[node], tables.node_entries[node + 1]
        for e in range(begin, end):
            work.token[used] = tables.entry_token[e]
            work.count[used] = tables.entry_count[e]
            work.second[used] = tables.entry_kinds[e]
            used += 1
        return used
    distinct = _count_followers(tables.following, tables.common, left, right, level, work.seen_count, work.seen_kinds,
                                work.seen_group, work.touched)
    for j in range(distinct):
        x = work.touched[j]
        work.token[used] = x
        work.count[used] = work.seen_count[x]
        work.second[used] = work.seen_kinds[x]
        work.seen_count[x] = 0
        work.seen_kinds[x] = 0
        used += 1
    return used


@jit()
def _sum_level(work, level):
    """Fill `found` of a level from its followers."""
    begin, end = work.bounds[level], work.bounds[level + 1]
    n, once, second = 0, 0, 0
    for e in range(begin, end):
        n += work.count[e]
        once += work.count[e] == 1
        second += work.second[e]
    work.found[level, 0] = n
    work.found[level, 1] = end - begin
    work.found[level, 2] = once
    work.found[level, 3] = second


@jit()
def collect_counts(tables, context, whole, work):
    """Fill `work` with the counts of the corpus and of the sequence's own past after a context (newest token last)."""
    work.found[:] = 0
    deep = find_runs(tables, context, whole, MAX_MATCH, work.left, work.right)
    work.depth[0] = deep
    used, levels = 0, work.order.size
    corpus = levels - HISTORY_ORDERS.size
    for level in range(corpus):
        work.bounds[level] = used
        order = CORPUS_ORDERS[level] if level < CORPUS_ORDERS.size else deep
        work.order[level] = order
        if order <= deep and (level < CORPUS_ORDERS.size or order > CORPUS_ORDERS[-1]):
            left, right = work.left[order], work.right[order]
            if level and order == CORPUS_ORDERS[level - 1] + 1 and left == work.left[order - 1] \
                    and right == work.right[order - 1]:
                # The same run has the same followers. Their second weights are copied too, so they are those of the
                # shorter context, 1 each: fitted models rely on it.
                for e in range(work.bounds[level - 1], work.bounds[level]):
                    work.token[used] = work.token[e]
                    work.count[used] = work.count[e]
                    work.second[used] = work.second[e]
                    used += 1
            else:
                used = append_followers(tables, order, left, right, work, used)
        work.bounds[level + 1] = used
        _sum_level(work, level)

    # The own past: matches[0..hits) are (position, length of the shared context) of earlier positions after the newest
    # token, latest first.
    length = context.size
    hits, longest = 0, 0
    if length:
        last = context[length - 1]
        for j in range(length - 1, 0, -1):
            if context[j - 1] == last:
                k = 1
                while k < MAX_MATCH and j - 1 - k >= 0 and context[j - 1 - k] == context[length - 1 - k]:
                    k += 1
                work.matches[hits, 0] = j
                work.matches[hits, 1] = k
                hits += 1
                longest = max(longest, k)
    work.depth[1] = longest
    for level in range(corpus, levels):
        order = HISTORY_ORDERS[level - corpus]
        work.order[level] = order
        latest, distinct = -1, 0
        if order == 0:
            if length:
                latest = length - 1
            for j in range(length - 1, -1, -1):
                x = context[j]
                if work.seen_count[x] == 0:
                    work.touched[distinct] = x
                    distinct += 1
                work.seen_count[x] += 1
        elif order <= longest:
            for h in range(hits):
                if work.matches[h, 1] >= order:
                    x = context[work.matches[h, 0]]
                    if latest < 0:
                        latest = work.matches[h, 0]
                    if work.seen_count[x] == 0:
                        work.touched[distinct] = x
                        distinct += 1
                    work.seen_count[x] += 1
        for j in range(distinct):
            x = work.touched[j]
            work.token[used] = x
            work.count[used] = work.seen_count[x]
            work.second[used] = j == 0  # followers are listed latest first
            work.seen_count[x] = 0
            used += 1
        work.bounds[level + 1] = used
        _sum_level(work, level)
        work.found[level, 4] = length - latest


@jit()
def compute_features(work, length, out):
    """Fill out (LEVELS, FEATURES) from the collected counts: on a log scale, of each level and of its neighbours."""
    corpus = CORPUS_ORDERS.size + 1
    log = np.log1p
    for level in range(work.order.size):
        own = 1 if level >= corpus else 0
        n, t, once = work.found[level, 0], work.found[level, 1], work.found[level, 2]
        second, age = work.found[level, 3], work.found[level, 4]
        order = work.order[level]
        first, last = (corpus, LEVELS - 1) if own else (0, corpus - 1)
        across = min(order, HISTORY_ORDERS.size - 1) + corpus if not own else min(order, CORPUS_ORDERS.size - 1)
        row = out[level]
        row[0], row[1], row[2], row[3] = log(n), log(t), log(once), log(age) if own else log(second)
        row[4], row[5], row[6] = t / (n + 1), once / (t + 1), t / (second + 1)
        row[7], row[8], row[9] = log(float(order)), order / 8, t == 1
        before, after = max(level - 1, first), min(level + 1, last)
        row[10], row[11] = log(work.found[before, 0]), log(work.found[before, 1])
        row[12] = log(work.found[after, 0]) if after > level else 0.0
        row[13] = log(work.found[after, 1]) if after > level else 0.0
        row[14], row[15] = log(float(work.depth[own])), (work.depth[own] - order) / 8
        row[16] = log(float(work.depth[1 - own]))
        row[17] = log(float(length))
        row[18], row[19] = log(work.found[across, 0]), log(work.found[across, 1])


class Trust(NamedTuple):
    """The gates of the blend: two small networks, for the corpus (0) and the own past (1), shared by their levels.

    into (2, H, FEATURES), into_bias (2, H), out (2, 2, H), out_bias (2, 2): the outputs are logits of passing on to the
        next level, and of using the counts rather than the second weights.
    discount: (2, LEVELS), subtracted from every count and every second weight.
    """

    into: np.ndarray
    into_bias: np.ndarray
    out: np.ndarray
    out_bias: np.ndarray
    discount: np.ndarray


# Levels from the shortest context on; the blend goes through them backwards: of each order the own past first, then the
# corpus, then the next shorter order; the uniform distribution is last.
LEVEL_ORDER = np.array([level for k in range(CORPUS_ORDERS.size + 1) for level in
                        [k] + [CORPUS_ORDERS.size + 1 + i for i, order in enumerate(HISTORY_ORDERS) if order == k]])


@jit()
def level_weights(work, trust, rows, weights):
    """Fill weights (LEVELS, 2) of each level's discounted counts and second weights; returns the uniform's weight."""
    hidden = trust.into.shape[1]
    left = 1.0
    weights[:] = 0
    for a in range(work.order.size - 1, -1, -1):
        level = LEVEL_ORDER[a]
        if work.found[level, 1] == 0:
            continue
        source = 1 if level > CORPUS_ORDERS.size else 0
        pass_on, plain = trust.out_bias[source, 0], trust.out_bias[source, 1]
        for h in range(hidden):
            z = trust.into_bias[source, h]
            for f in range(rows.shape[1]):
                z += trust.into[source, h, f] * rows[level, f]
            z = np.tanh(z)
            pass_on += trust.out[source, 0, h] * z
            plain += trust.out[source, 1, h] * z
        passed = 1 / (1 + np.exp(-pass_on))
        share = 1 / (1 + np.exp(-plain))
        weights[level, 0] = left * (1 - passed) * share
        weights[level, 1] = left * (1 - passed) * (1 - share)
        left *= passed
    return left


@jit()
def mix_levels(work, trust, weights, left, out):
    """Fill out (V,) with the mixture of all levels' distributions by the weights of `level_weights`."""
    out[:] = left / out.size
    for level in range(work.order.size):
        n, t, second = work.found[level, 0], work.found[level, 1], work.found[level, 3]
        if t == 0:
            continue
        off, off_second = trust.discount[0, level], trust.discount[1, level]
        a = weights[level, 0] / (n - off * t)
        b = weights[level, 1] / (second - off_second * t)
        for e in range(work.bounds[level], work.bounds[level + 1]):
            out[work.token[e]] += a * (work.count[e] - off) + b * max(work.second[e] - off_second, 0.0)


@jit()
def blend_row(tables, context, whole, trust, work, rows, weights, out):
    """Fill out (V,) with the blended distribution after a context, and rows and weights with its features and
    weights."""
    collect_counts(tables, context, whole, work)
    compute_features(work, context.size, rows)
    left = level_weights(work, trust, rows, weights)
    mix_levels(work, trust, weights, left, out)


@jit(nogil=True)
def observe_document(tables, document, begin, end, window, work, rows, facts):
    """Collect the training data of the gates, for the tokens [begin, end) of a document.

    rows: (m, LEVELS, FEATURES) float32. facts: (m, LEVELS, 5) float32: n, t, total of second weights, and the count
    and second weight of the actual next token.
    """
    scratch = np.empty((LEVELS, FEATURES))
    for i in range(begin, end):
        low = max(0, i - window)
        collect_counts(tables, document[low:i], low == 0, work)
        compute_features(work, i - low, scratch)
        row, fact = rows[i - begin], facts[i - begin]
        fact[:] = 0
        for level in range(work.order.size):
            for f in range(FEATURES):
                row[level, f] = scratch[level, f]
            fact[level, 0] = work.found[level, 0]
            fact[level, 1] = work.found[level, 1]
            fact[level, 2] = work.found[level, 3]
            for e in range(work.bounds[level], work.bounds[level + 1]):
                if work.token[e] == document[i]:
                    fact[level, 3] = work.count[e]
                    fact[level, 4] = work.second[e]


@jit(nogil=True)
def blend_document(tables, document, begin, end, window, trust, work, out):
    """Fill out (end - begin, V) with the distributions of the tokens [begin, end) of a document, each given those
    before it."""
    rows, weights = np.empty((LEVELS, FEATURES)), np.empty((LEVELS, 2))
    for i in range(begin, end):
        low = max(0, i - window)
        blend_row(tables, document[low:i], low == 0, trust, work, rows, weights, out[i - begin])


# ------------------------------------------------------------------------------------------------------------------
# The classical estimates: Markov, Witten-Bell, Kneser-Ney.

MARKOV, WITTEN_BELL, KNESER_NEY = 0, 1, 2


@jit()
def classical_row(tables, context, whole, order, smoothing, backoff, discount, work, out):
    """Fill out (V,) with the distribution after a context from counts of orders 0..order.

    backoff: of Markov; without it only the context of exactly `order` tokens counts (fewer at the start of a document),
    and unseen ones give a uniform distribution. discount: (order + 1,), of Kneser-Ney.
    """
    deep = find_runs(tables, context, whole, order, work.left, work.right)
    full = min(order, context.size + whole)
    lowest = 0
    if smoothing == MARKOV:
        lowest = deep
        if deep < full and not backoff:
            out[:] = 1 / out.size
            return
    out[:] = 0
    left = 1.0
    for k in range(deep, lowest - 1, -1):
        used = append_followers(tables, k, work.left[k], work.right[k], work, 0)
        # Kneser-Ney counts, for contexts shorter than the full one, distinct longer contexts instead of occurrences.
        kinds = smoothing == KNESER_NEY and k < full
        n = 0
        for e in range(used):
            n += work.second[e] if kinds else work.count[e]
        off = 0.0
        if smoothing == MARKOV:
            passed = 0.0
        elif smoothing == WITTEN_BELL:
            passed = used / (n + used)
        else:
            off = discount[k]
            passed = off * used / n
        scale = left * (1 - passed) / (n - off * used) if n > off * used else 0.0
        for e in range(used):
            out[work.token[e]] += scale * ((work.second[e] if kinds else work.count[e]) - off)
        left *= passed
    for x in range(out.size if left > 0 else 0):
        out[x] += left / out.size


@jit(nogil=True)
def classical_document(tables, document, begin, end, start, order, smoothing, backoff, discount, work, out):
    """Fill out (end - begin, V) with the distributions of the tokens [begin, end) of a document, each given those
    before it."""
    for i in range(begin, end):
        low = max(0, i - order)
        classical_row(tables, document[low:i], start and low == 0, order, smoothing, backoff, discount, work,
                      out[i - begin])


@jit()
def counts_of_counts(tables, order, out):
    """Fill out (order + 1, 2): at each order, how many (context, follower) pairs occurred once and twice; below the
    highest order, after that many distinct longer contexts."""
    following, common = tables.following, tables.common
    vocabulary = tables.first.size - 2
    count, kinds = np.zeros(vocabulary, np.int32), np.zeros(vocabulary, np.int32)
    seen, touched = np.zeros(vocabulary, np.int32), np.empty(vocabulary, np.int32)
    out[:] = 0
    for level in range(order + 1):
        left = 0
        while left < following.size:
            right = left + 1
            while right < following.size and common[right] >= level:
                right += 1
            distinct = _count_followers(following, common, left, right, level, count, kinds, seen, touched)
            for j in range(distinct):
                x = touched[j]
                c = count[x] if level == order else kinds[x]
                if c <= 2:
                    out[level, c - 1] += 1
                count[x] = 0
                kinds[x] = 0
            left = right


# ------------------------------------------------------------------------------------------------------------------
# Decoding: nodes of a chain or tree of draft tokens after a remembered past.


@jit()
def _copy_past(past, tokens, chain, b, scratch):
    """Copy the past of row b and, if the draft is a chain, its nodes after it."""
    size = past.shape[1]
    for i in range(size):
        scratch[i] = past[b, i]
    for i in range(tokens.shape[1] if chain else 0):
        scratch[size + i] = tokens[b, i]


@jit()
def _write_context(past, tokens, parents, chain, at, b, m, scratch):
    """Write the path to node at[b, m] (itself the newest token) after the past; returns where it ends."""
    size = past.shape[1]
    node = at[b, m]
    if chain:
        return size + node + 1
    depth, i = 0, node
    while i >= 0:
        depth += 1
        i = parents[b, i]
    end, i = size + depth, node
    while i >= 0:
        depth -= 1
        scratch[size + depth] = tokens[b, i]
        i = parents[b, i]
    return end


@jit(nogil=True)
def blend_nodes(tables, past, begins, whole, tokens, parents, chain, at, window, trust, work, out):
    """Fill out (B, M, V) with the distributions after the nodes `at` of a chain or tree. past: (B, S), valid from
    begins[b] on. whole[b]: it reaches back to the start of the document."""
    rows, weights = np.empty((LEVELS, FEATURES)), np.empty((LEVELS, 2))
    scratch = np.empty(past.shape[1] + tokens.shape[1], np.int32)
    for b in range(past.shape[0]):
        _copy_past(past, tokens, chain, b, scratch)
        for m in range(at.shape[1]):
            end = _write_context(past, tokens, parents, chain, at, b, m, scratch)
            low = max(begins[b], end - window)
            blend_row(tables, scratch[low:end], whole[b] and low == begins[b], trust, work, rows, weights, out[b, m])


@jit(nogil=True)
def classical_nodes(tables, past, begins, whole, tokens, parents, chain, at, start, order, smoothing, backoff, discount,
                    work, out):
    """As `blend_nodes`, for the classical estimates."""
    scratch = np.empty(past.shape[1] + tokens.shape[1], np.int32)
    for b in range(past.shape[0]):
        _copy_past(past, tokens, chain, b, scratch)
        for m in range(at.shape[1]):
            end = _write_context(past, tokens, parents, chain, at, b, m, scratch)
            low = max(begins[b], end - order)
            classical_row(tables, scratch[low:end], start and whole[b] and low == begins[b], order, smoothing, backoff,
                          discount, work, out[b, m])


@jit(nogil=True)
def blend_draft(tables, past, begin, whole, window, trust, work, min_probability, tokens):
    """Draft greedily after one past (S,), valid from `begin` on: fills `tokens` until one is less likely than
    `min_probability`; returns how many there are."""
    rows, weights = np.empty((LEVELS, FEATURES)), np.empty((LEVELS, 2))
    out = np.empty(tables.first.size - 2)
    size = past.size
    scratch = np.empty(size + tokens.size, np.int32)
    for i in range(size):
        scratch[i] = past[i]
    for n in range(tokens.size):
        low = max(begin, size + n - window)
        blend_row(tables, scratch[low:size + n], whole and low == begin, trust, work, rows, weights, out)
        best = np.argmax(out)
        if out[best] < min_probability:
            return n
        tokens[n] = best
        scratch[size + n] = best
    return tokens.size
