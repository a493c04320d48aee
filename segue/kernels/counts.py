"""Count tables over token streams, compiled with Numba: contexts sorted from their newest token backwards.

Every position of a training stream is one observation: a context (the tokens before it, back to the start of its
document) and the token that followed. Sorting the positions by context, newest token first, puts all observations of
one context of *any* order side by side, and the run of a longer context inside the run of the shorter one. So one
array of positions is a count table of every order at once; a lookup is a chain of narrowing binary searches.

Runs longer than `BIG` have their counts written out beforehand; shorter ones are counted when asked for.
"""

# mypy: disallow-untyped-defs=False
# (the arguments are typed by Numba, from what it is called with)

from __future__ import annotations

import threading
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from segue.errors import SegueError
from segue.kernels.jit import jit as kept

# For quick compiling: divisions are as in C, arrays are copied in loops, and loops over levels have a length that the
# compiler does not know, so that it does not unroll them.
jit = partial(kept, error_model="numpy")

BIG = 48          # runs at most this long are counted on demand
DEEP = 12         # orders above this one are never written out beforehand (their long runs are boilerplate, and few)


class Tables(NamedTuple):
    """Sorted contexts of a token stream of n observations; see `build`.

    stream: (N,) int32, documents one after the other, each preceded by the mark `vocabulary`.
    order: (n,) int32, stream positions sorted by what precedes them. following: (n,) int32, stream[order].
    common: (n,) uint8, how many tokens of context each shares with its predecessor (0 for the first).
    first: (V + 2,) int32, start in `order` of the contexts whose newest token is v.
    node_level: (levels + 1,) int32, where each order's long runs begin in `node_left`, its left ends, sorted.
    node_entries: (nodes + 1,) int64 into entry_token / entry_count / entry_kinds: what followed, how often, and
        after how many distinct one-token-longer contexts.
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
def _ages(stream, mark):
    """Distance from each position back to the mark that opens its document."""
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
        for at in order:                                   # beyond the mark all contexts are equal
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
def _older(stream, age, a, b, d, depth):
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
                    while j > low and _older(stream, age, a, order[j - 1], d, depth):
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
def _common(stream, order, mark, depth):
    common = np.zeros(order.size, np.uint8)
    for m in range(1, order.size):
        a, b = order[m - 1], order[m]
        k = 0
        while k < depth and stream[a - k - 1] == stream[b - k - 1]:
            k += 1
            if stream[a - k] == mark:                      # both documents begin here: equal for ever
                k = depth
        common[m] = k
    return common


@jit()
def _count_run(following, common, left, right, level, count, kinds, seen, tokens):
    """Count what follows in one run into the scratch arrays (V,), which must be zero; returns how many distinct."""
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
def _long_runs(common, levels, level_start, ends):
    """Ends (m, 2) of the long runs of orders 0..levels, order by order; returns how many (all are counted, those that
    fit are written)."""
    nodes = 0
    for level in range(levels + 1):
        level_start[level] = nodes
        left = 0
        while left < common.size:
            right = left + 1
            while right < common.size and common[right] >= level:
                right += 1
            if right - left > BIG:
                if nodes < len(ends):
                    ends[nodes, 0], ends[nodes, 1] = left, right
                nodes += 1
            left = right
    level_start[levels + 1] = nodes
    return nodes


@jit()
def _write_out(following, common, mark, level_start, ends):
    """The followers of all long runs."""
    count, kinds = np.zeros(mark, np.int32), np.zeros(mark, np.int32)
    seen, tokens = np.zeros(mark, np.int32), np.empty(mark, np.int32)
    entries = np.zeros(len(ends) + 1, np.int64)
    lists = np.empty((3, 1 << 16), np.int32)
    used = 0
    for level in range(level_start.size - 1):
        for node in range(level_start[level], level_start[level + 1]):
            distinct = _count_run(following, common, ends[node, 0], ends[node, 1], level, count, kinds, seen, tokens)
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
    """Sort a marked stream (see `Tables`) by contexts of up to `depth` tokens (at most 255)."""
    stream = np.ascontiguousarray(stream, np.int32)
    age = _ages(stream, vocabulary)
    order = _sort_newest(stream, age, vocabulary, min(depth, 2))
    _sort_deeper(stream, age, order, depth, min(depth, 2))
    return restore(stream, order, _common(stream, order, vocabulary, depth), vocabulary, depth)


def restore(stream: np.ndarray, order: np.ndarray, common: np.ndarray, vocabulary: int, depth: int) -> Tables:
    """Tables from what is stored of them."""
    stream = np.ascontiguousarray(stream, np.int32)
    if order.size and (order.min() < 1 or order.max() >= stream.size or common.size != order.size):
        raise SegueError("stored counts are damaged: their positions do not fit their stream")
    first = np.searchsorted(stream[order - 1], np.arange(vocabulary + 2)).astype(np.int32)
    following = stream[order]
    levels = min(depth, DEEP)
    level_start = np.zeros(levels + 2, np.int32)
    ends = np.empty((_long_runs(common, levels, level_start, np.empty((0, 2), np.int32)), 2), np.int32)
    _long_runs(common, levels, level_start, ends)
    return Tables(stream, order, following, common, first, level_start, ends[:, 0].copy(),
                  *_write_out(following, common, vocabulary, level_start, ends))


@jit()
def _narrow(stream, order, left, right, distance, token):
    """The part of a run whose token at `distance` before the observation is `token`."""
    low, high = left, right
    while low < high:
        middle = (low + high) >> 1
        if stream[order[middle] - distance] < token:
            low = middle + 1
        else:
            high = middle
    left, high = low, right
    # most runs are short beside what is left of their parent: double the step before halving it
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
def descend(tables, context, whole, limit, left, right):
    """Runs of every order of a context (its newest token last): left[k], right[k] for k = 0..the returned order.

    whole: the context reaches back to the start of its document, and the mark there counts as one more (oldest) token.
    limit: the highest order looked for.
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
            low, high = _narrow(tables.stream, tables.order, left[k], right[k], k + 1, token)
        if low >= high:
            break
        k += 1
        left[k], right[k] = low, high
    return k


@jit()
def find_node(tables, level, left, right):
    """Index of a run's written-out counts, or -1 where it must be counted on demand."""
    if right - left <= BIG or level + 1 >= tables.node_level.size:
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
# What is known of one context: `collect` lists, level by level, what followed it, how often, and with which weight.

STATIC = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8])      # corpus orders; one more level holds the longest run found
RECENT = np.array([0, 1, 2, 3, 4, 6])               # orders of the sequence's own past
LEVELS = STATIC.size + 1 + RECENT.size
FEATURES = 20
REACH = 32                                          # longest match told apart


class Work(NamedTuple):
    """Scratch memory of one thread, and what `collect` found.

    found: (LEVELS, 5) float64: observations n, distinct followers t, followers seen once, total of `second` weights,
        age of the latest observation (own past only). order: (LEVELS,) int64, the order behind each level.
    bounds: (LEVELS + 1,) int64 into token / count / second: the followers of each level, how often each was seen, and
        its second weight (corpus: after how many distinct longer contexts; own past: 1 for the latest follower).
    depth: (2,) int64, longest context found in the corpus and in the own past.
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
    count: np.ndarray  # type: ignore[assignment]  # hides tuple.count, which nobody wants here
    second: np.ndarray


def workspace(vocabulary: int, window: int, limit: int = REACH) -> Work:
    """This thread's room for the functions below, some of which run without the interpreter's lock."""
    return _workspace(threading.get_ident(), vocabulary, window, limit)


@lru_cache(maxsize=8)
def _workspace(thread: int, vocabulary: int, window: int, limit: int) -> Work:
    whole = np.zeros(vocabulary, np.int32)
    room = vocabulary * LEVELS
    return Work(whole, whole.copy(), whole.copy(), whole.copy(), np.empty(limit + 2, np.int64),
                np.empty(limit + 2, np.int64), np.empty((window + 1, 2), np.int32), np.zeros((LEVELS, 5)),
                np.zeros(LEVELS, np.int64), np.zeros(LEVELS + 1, np.int64), np.zeros(2, np.int64),
                np.empty(room, np.int32), np.empty(room, np.int32), np.empty(room, np.int32))


@jit()
def list_run(tables, level, left, right, work, used):
    """Append the followers of a run to the lists; returns where they end."""
    node = find_node(tables, level, left, right)
    if node >= 0:
        begin, end = tables.node_entries[node], tables.node_entries[node + 1]
        for e in range(begin, end):
            work.token[used] = tables.entry_token[e]
            work.count[used] = tables.entry_count[e]
            work.second[used] = tables.entry_kinds[e]
            used += 1
        return used
    distinct = _count_run(tables.following, tables.common, left, right, level, work.seen_count, work.seen_kinds,
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
def collect(tables, context, whole, work):
    """Fill `work` with all that the corpus and the sequence's own past say about one context (newest token last)."""
    work.found[:] = 0
    deep = descend(tables, context, whole, REACH, work.left, work.right)
    work.depth[0] = deep
    used, levels = 0, work.order.size
    corpus = levels - RECENT.size
    for level in range(corpus):
        work.bounds[level] = used
        order = STATIC[level] if level < STATIC.size else deep
        work.order[level] = order
        if order <= deep and (level < STATIC.size or order > STATIC[-1]):
            left, right = work.left[order], work.right[order]
            if level and order == STATIC[level - 1] + 1 and left == work.left[order - 1] \
                    and right == work.right[order - 1]:
                for e in range(work.bounds[level - 1], work.bounds[level]):    # the same run: the same followers
                    work.token[used] = work.token[e]
                    work.count[used] = work.count[e]
                    work.second[used] = work.second[e]
                    used += 1
            else:
                used = list_run(tables, order, left, right, work, used)
        work.bounds[level + 1] = used
        _sum_level(work, level)

    # The own past: matches[0..hits) are (place, length) of earlier places preceded by the newest token, latest first.
    length = context.size
    hits, longest = 0, 0
    if length:
        last = context[length - 1]
        for j in range(length - 1, 0, -1):
            if context[j - 1] == last:
                k = 1
                while k < REACH and j - 1 - k >= 0 and context[j - 1 - k] == context[length - 1 - k]:
                    k += 1
                work.matches[hits, 0] = j
                work.matches[hits, 1] = k
                hits += 1
                longest = max(longest, k)
    work.depth[1] = longest
    for level in range(corpus, levels):
        order = RECENT[level - corpus]
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
            work.second[used] = j == 0                     # listed latest first
            work.seen_count[x] = 0
            used += 1
        work.bounds[level + 1] = used
        _sum_level(work, level)
        work.found[level, 4] = length - latest


@jit()
def features(work, length, out):
    """(LEVELS, FEATURES) of what `collect` found: counts on a log scale, of each level and of its neighbours."""
    corpus = STATIC.size + 1
    log = np.log1p
    for level in range(work.order.size):
        own = 1 if level >= corpus else 0
        n, t, once = work.found[level, 0], work.found[level, 1], work.found[level, 2]
        second, age = work.found[level, 3], work.found[level, 4]
        order = work.order[level]
        first, last = (corpus, LEVELS - 1) if own else (0, corpus - 1)
        across = min(order, RECENT.size - 1) + corpus if not own else min(order, STATIC.size - 1)
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
    """How far each level is believed over the shorter ones: two small networks, shared by all levels of a source.

    into (2, H, FEATURES), into_bias (2, H), out (2, 2, H), out_bias (2, 2): source 0 the corpus, 1 the own past; the
        outputs are logits of passing on to the shorter context, and of the plain counts against the second weights.
    discount: (2, LEVELS), taken off every count and every second weight.
    """

    into: np.ndarray
    into_bias: np.ndarray
    out: np.ndarray
    out_bias: np.ndarray
    discount: np.ndarray


# Corpus order k is asked, then order k of the own past, then the next shorter ones; the uniform distribution is last.
ASKED = np.array([level for k in range(STATIC.size + 1) for level in
                  [k] + [STATIC.size + 1 + i for i, order in enumerate(RECENT) if order == k]])


@jit()
def weigh(work, trust, rows, weights):
    """weights (LEVELS, 2): of each level's discounted counts and second weights; returns what is left for uniform."""
    hidden = trust.into.shape[1]
    left = 1.0
    weights[:] = 0
    for a in range(work.order.size - 1, -1, -1):
        level = ASKED[a]
        if work.found[level, 1] == 0:
            continue
        source = 1 if level > STATIC.size else 0
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
def spread(work, trust, weights, left, out):
    """The distribution (V,) that the weights of `weigh` make of the listed counts."""
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
    """One context's blended distribution (V,), and its features (`rows`) and weights on the way."""
    collect(tables, context, whole, work)
    features(work, context.size, rows)
    left = weigh(work, trust, rows, weights)
    spread(work, trust, weights, left, out)


@jit(nogil=True)
def observe(tables, document, begin, end, window, work, rows, facts):
    """What the blend is fitted on, for the tokens [begin, end) of a document.

    rows: (m, LEVELS, FEATURES) float32. facts: (m, LEVELS, 5) float32: n, t, total of second weights, and the count
    and second weight of the token that did follow.
    """
    scratch = np.empty((LEVELS, FEATURES))
    for i in range(begin, end):
        low = max(0, i - window)
        collect(tables, document[low:i], low == 0, work)
        features(work, i - low, scratch)
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
    """Distributions (end - begin, V) of the tokens [begin, end) of a document, each from what precedes it."""
    rows, weights = np.empty((LEVELS, FEATURES)), np.empty((LEVELS, 2))
    for i in range(begin, end):
        low = max(0, i - window)
        blend_row(tables, document[low:i], low == 0, trust, work, rows, weights, out[i - begin])


# ------------------------------------------------------------------------------------------------------------------
# The classical estimates of one order.

MARKOV, WITTEN_BELL, KNESER_NEY = 0, 1, 2


@jit()
def plain_row(tables, context, whole, order, smoothing, backoff, discount, work, out):
    """One context's distribution (V,) from counts of orders 0..order.

    backoff: without it the context of exactly `order` tokens (fewer only at the start) is asked, uniform if unseen.
    discount: (order + 1,), used by Kneser-Ney.
    """
    deep = descend(tables, context, whole, order, work.left, work.right)
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
        used = list_run(tables, k, work.left[k], work.right[k], work, 0)
        # Kneser-Ney asks the shorter contexts in how many longer ones a token followed, not how often
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
def plain_document(tables, document, begin, end, start, order, smoothing, backoff, discount, work, out):
    """Distributions (end - begin, V) of the tokens [begin, end) of a document, each from what precedes it."""
    for i in range(begin, end):
        low = max(0, i - order)
        plain_row(tables, document[low:i], start and low == 0, order, smoothing, backoff, discount, work,
                  out[i - begin])


@jit()
def seen_once_and_twice(tables, order, out):
    """out (order + 1, 2): at each order, how many (context, follower) pairs were seen once and twice; below the
    highest order, seen after that many distinct longer contexts."""
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
            distinct = _count_run(following, common, left, right, level, count, kinds, seen, touched)
            for j in range(distinct):
                x = touched[j]
                c = count[x] if level == order else kinds[x]
                if c <= 2:
                    out[level, c - 1] += 1
                count[x] = 0
                kinds[x] = 0
            left = right


# ------------------------------------------------------------------------------------------------------------------
# Nodes of a chain or a tree that follow a remembered past.


@jit()
def _lay(past, tokens, chain, b, scratch):
    """Write the past of row b and, of a chain, its nodes behind it."""
    size = past.shape[1]
    for i in range(size):
        scratch[i] = past[b, i]
    for i in range(tokens.shape[1] if chain else 0):
        scratch[size + i] = tokens[b, i]


@jit()
def _contexts(past, tokens, parents, chain, at, b, m, scratch):
    """Write the context of node at[b, m] (itself the newest token) behind the past; returns where it ends."""
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
    """Distributions (B, M, V) after the nodes `at` of a chain or tree. past: (B, S), valid from begins[b] on;
    whole[b]: it reaches back to the start of the document."""
    rows, weights = np.empty((LEVELS, FEATURES)), np.empty((LEVELS, 2))
    scratch = np.empty(past.shape[1] + tokens.shape[1], np.int32)
    for b in range(past.shape[0]):
        _lay(past, tokens, chain, b, scratch)
        for m in range(at.shape[1]):
            end = _contexts(past, tokens, parents, chain, at, b, m, scratch)
            low = max(begins[b], end - window)
            blend_row(tables, scratch[low:end], whole[b] and low == begins[b], trust, work, rows, weights, out[b, m])


@jit(nogil=True)
def plain_nodes(tables, past, begins, whole, tokens, parents, chain, at, start, order, smoothing, backoff, discount,
                work, out):
    """As `blend_nodes`, for the classical estimates."""
    scratch = np.empty(past.shape[1] + tokens.shape[1], np.int32)
    for b in range(past.shape[0]):
        _lay(past, tokens, chain, b, scratch)
        for m in range(at.shape[1]):
            end = _contexts(past, tokens, parents, chain, at, b, m, scratch)
            low = max(begins[b], end - order)
            plain_row(tables, scratch[low:end], start and whole[b] and low == begins[b], order, smoothing, backoff,
                      discount, work, out[b, m])


@jit(nogil=True)
def blend_draft(tables, past, begin, whole, window, trust, work, least, tokens):
    """The likeliest continuation of one past (S,), valid from `begin` on, by the blend alone: fills `tokens` until one
    is less likely than `least`; returns how many there are."""
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
        if out[best] < least:
            return n
        tokens[n] = best
        scratch[size + n] = best
    return tokens.size
