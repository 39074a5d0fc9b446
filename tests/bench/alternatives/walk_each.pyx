# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""`walk_each` of `stream_vae.avro.kernel` in Cython: the same operations, bounds and faults, in the same order."""

from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport free, malloc

cdef enum:
    RETURN = 0
    FIXED = 1
    VARINT = 2
    BYTES = 3
    ENUM = 4
    OPT_FIXED = 5
    OPT_VARINT = 6
    OPT_BYTES = 7
    UNION = 8
    CALL = 9
    ARRAY = 10
    ARRAY_FIXED = 11
    MARK_START = 12
    MARK_END = 13
    NULL_BRANCH = -1
    EMPTY_BRANCH = -2
    NARROW_UNION = 64
    HEADER = 4
    ROW = 4
    TRUNCATED = -1
    MALFORMED = -2
    TOO_DEEP = -3
    TOO_MANY_STEPS = -4
    TOO_MANY_EMPTY_ITEMS = -5
    LAST_SHIFT = 63

cdef struct Frame:
    int64_t back
    int64_t block
    int64_t left
    int64_t limit
    int64_t least


cdef inline int64_t read_long(const uint8_t* body, int64_t size, int64_t at, int64_t* value) noexcept nogil:
    cdef uint64_t raw = 0
    cdef uint64_t byte
    cdef int shift = 0
    while at < size:
        byte = body[at]
        at += 1
        raw |= (byte & 0x7F) << shift
        if byte < 0x80:
            if shift == LAST_SHIFT and byte > 1:
                return MALFORMED
            value[0] = <int64_t>(raw >> 1) ^ -<int64_t>(raw & 1)
            return at
        shift += 7
        if shift > LAST_SHIFT:
            return MALFORMED
    return TRUNCATED


cdef inline int64_t skip_long(const uint8_t* body, int64_t size, int64_t at) noexcept nogil:
    cdef int64_t value
    if at < size and body[at] < 0x80:
        return at + 1
    return read_long(body, size, at, &value)


cdef inline int64_t skip_bytes(const uint8_t* body, int64_t size, int64_t at) noexcept nogil:
    cdef int64_t length = 0
    at = read_long(body, size, at, &length)
    if at < 0:
        return at
    if length < 0:
        return MALFORMED
    if length > size - at:
        return TRUNCATED
    return at + length


cdef inline int64_t optional(const uint8_t* body, int64_t size, int64_t at, int64_t null, bint* there) noexcept nogil:
    if at >= size:
        return TRUNCATED
    if body[at] & ~2:
        return MALFORMED
    there[0] = body[at] != null
    return at + 1


cdef inline int64_t skip_optional_fixed(
    const uint8_t* body, int64_t size, int64_t at, int64_t width, int64_t null, int64_t count
) noexcept nogil:
    cdef int64_t byte
    cdef int64_t wrong = 0
    cdef int64_t n
    cdef bint there = False
    if count <= (size - at) // (1 + width):
        for n in range(count):
            byte = body[at]
            wrong |= byte
            at += 1 + (((byte ^ null) & 2) >> 1) * width
        return MALFORMED if wrong & ~2 else at
    for n in range(count):
        at = optional(body, size, at, null, &there)
        if at < 0:
            return at
        if there:
            if width > size - at:
                return TRUNCATED
            at += width
    return at


cdef inline int64_t open_block(
    const uint8_t* body, int64_t size, int64_t at, int64_t* count, int64_t* limit
) noexcept nogil:
    cdef int64_t length = 0
    limit[0] = -1
    at = read_long(body, size, at, count)
    if at < 0 or count[0] >= 0:
        return at
    at = read_long(body, size, at, &length)
    if at < 0:
        return at
    if length < 0 or count[0] == -count[0]:
        return MALFORMED
    if length > size - at:
        return TRUNCATED
    count[0] = -count[0]
    limit[0] = at + length
    return at


cdef int64_t walk(
    const uint8_t* body, int64_t size, const int64_t* table, int64_t[:, ::1] spans, Frame* frames
) noexcept nogil:
    cdef int64_t max_depth = table[0], steps = table[1], empties = table[2]
    cdef int64_t depth = 0, at = 0, pc = HEADER
    cdef int64_t operation, a, b, slot, repeat, start, n, index = 0, count = 0, limit = 0, target
    cdef bint there = False
    spans[:, :] = -1
    while True:
        operation, a, b, slot = table[pc], table[pc + 1], table[pc + 2], table[pc + 3]
        pc += ROW
        repeat = 1 if slot >= 0 else -slot
        steps -= repeat
        if steps < 0:
            return TOO_MANY_STEPS
        start = at

        if operation == OPT_FIXED:
            if slot < 0:
                at = skip_optional_fixed(body, size, at, a, b, repeat)
                if at < 0:
                    return at
                continue
            at = optional(body, size, at, b, &there)
            if at < 0:
                return at
            if not there:
                continue
            if a > size - at:
                return TRUNCATED
            start = at
            at += a
        elif operation == OPT_VARINT or operation == OPT_BYTES:
            for n in range(repeat):
                at = optional(body, size, at, b, &there)
                if at < 0:
                    return at
                start = at
                if there:
                    at = skip_long(body, size, at) if operation == OPT_VARINT else skip_bytes(body, size, at)
                    if at < 0:
                        return at
            if not there:
                continue
        elif operation == VARINT:
            for n in range(repeat):
                at = skip_long(body, size, at)
                if at < 0:
                    return at
        elif operation == BYTES:
            for n in range(repeat):
                at = skip_bytes(body, size, at)
                if at < 0:
                    return at
        elif operation == FIXED:
            if a > size - at:
                return TRUNCATED
            at += a
        elif operation == ENUM:
            at = read_long(body, size, at, &index)
            if at < 0:
                return at
            if index < 0 or index >= a:
                return MALFORMED
        elif operation == MARK_START:
            spans[slot, 0] = at
            continue
        elif operation == MARK_END:
            if spans[slot, 0] >= 0:
                spans[slot, 1] = at
            continue
        elif operation == ARRAY_FIXED:
            while True:
                at = open_block(body, size, at, &count, &limit)
                if at < 0:
                    return at
                if count == 0:
                    break
                if a == 0:
                    empties -= min(count, empties + 1)
                    if empties < 0:
                        return TOO_MANY_EMPTY_ITEMS
                elif count > (size - at) // a:
                    return TRUNCATED
                at += count * a
                if limit >= 0 and at != limit:
                    return MALFORMED
                steps -= 1
                if steps < 0:
                    return TOO_MANY_STEPS
            continue
        elif operation == CALL or operation == UNION:
            target = a
            if operation == UNION:
                at = read_long(body, size, at, &index)
                if at < 0:
                    return at
                if index < 0 or index >= b or (b <= NARROW_UNION and at != start + 1):
                    return MALFORMED
                target = table[a + index]
                if slot >= 0 and target != NULL_BRANCH:
                    spans[slot, 0] = at
                if target == NULL_BRANCH or target == EMPTY_BRANCH:
                    continue
            if depth == max_depth:
                return TOO_DEEP
            frames[depth].back = pc
            frames[depth].block = 0
            depth += 1
            pc = target
            continue
        else:
            if operation == ARRAY:
                if depth == max_depth:
                    return TOO_DEEP
                frames[depth].back = pc
                frames[depth].block = a
                frames[depth].least = b
                depth += 1
            elif depth == 0:
                return at
            elif frames[depth - 1].block == 0:
                depth -= 1
                pc = frames[depth].back
                continue
            else:
                frames[depth - 1].left -= 1
                if frames[depth - 1].left > 0:
                    pc = frames[depth - 1].block
                    continue
                if frames[depth - 1].limit >= 0 and frames[depth - 1].limit != at:
                    return MALFORMED
            at = open_block(body, size, at, &count, &limit)
            if at < 0:
                return at
            if count > (size - at) // frames[depth - 1].least:
                return TRUNCATED
            if count == 0:
                depth -= 1
                pc = frames[depth].back
            else:
                frames[depth - 1].left = count
                frames[depth - 1].limit = limit
                pc = frames[depth - 1].block
            continue

        if slot >= 0:
            spans[slot, 0] = start
            spans[slot, 1] = at


def walk_each(
    const uint64_t[::1] addresses,
    const int64_t[::1] lengths,
    const int64_t[::1] table,
    int64_t[:, :, ::1] spans,
    int64_t[::1] ends,
):
    """Run a program over the records of a batch, without the interpreter's lock."""
    cdef Py_ssize_t n
    cdef Frame* frames = <Frame*>malloc(table[0] * sizeof(Frame))
    if frames == NULL:
        raise MemoryError
    with nogil:
        for n in range(addresses.shape[0]):
            ends[n] = walk(<const uint8_t*>addresses[n], lengths[n], &table[0], spans[n], frames)
    free(frames)
