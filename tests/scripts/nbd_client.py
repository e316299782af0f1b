#!/usr/bin/python3
"""Checks every NBD command and flag of one export with libnbd. Destroys what is on it.

Usage: nbd_client.py URI. Exits 0 when everything holds, else with the failing check.
"""

import errno
import random
import sys

import nbd

MIB = 1 << 20
uri = sys.argv[1]
seed = random.randrange(1 << 32)
rnd = random.Random(seed)
checks = 0


def check(truth, text):
    """Ends the run when something does not hold."""
    global checks
    checks += 1
    if not truth:
        sys.exit(f"nbd_client.py: seed {seed}: {text}")


def refused(want, text, call):
    """The server must answer this request with this error, and go on."""
    try:
        call()
    except nbd.Error as e:
        check(e.errnum in want, f"{text}: error {errno.errorcode.get(e.errnum)}, expected "
              + " or ".join(errno.errorcode[w] for w in want))
    else:
        check(False, f"{text}: accepted")


h = nbd.NBD()
h.set_request_structured_replies(True)
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_uri(uri)
size = h.get_size()
check(size >= 64 * MIB, f"volume of {size} bytes is too small for the checks")
check(not h.is_read_only(), "read-only")
check(h.can_flush() and h.can_fua() and h.can_trim() and h.can_zero(), "a command is missing")
check(h.can_multi_conn(), "several connections are not allowed")
check(h.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION), "no base:allocation")

# Plain writes, with and without FUA, at every unfriendly alignment the block sizes allow.
least = max(h.get_block_size(nbd.SIZE_MINIMUM), 1)
for offset, length in [(0, 4096), (4096, 512), (512 * 3, 512 * 13), (MIB - 512, 1024),
                       (5 * MIB + 512, 3 * MIB + 1024), (size - 512, 512), (8 * MIB, 4 * MIB)]:
    data = rnd.randbytes(length)
    before = h.pread(512, offset - 512) if offset >= 512 else b""
    after = h.pread(512, offset + length) if offset + length + 512 <= size else b""
    h.pwrite(data, offset, nbd.CMD_FLAG_FUA if rnd.random() < 0.5 else 0)
    check(h.pread(length, offset) == data, f"{length} bytes at {offset} read back differ")
    if before:
        check(h.pread(512, offset - 512) == before, f"write at {offset} touched what is before")
    if after:
        check(h.pread(512, offset + length) == after, f"write at {offset} touched what follows")
if least == 1:
    h.pwrite(b"x" * 4096 * 3, 20 * MIB)
    for offset, length in [(1, 1), (4095, 2), (4097, 7000)]:
        data = rnd.randbytes(length)
        h.pwrite(data, 20 * MIB + offset)
        check(h.pread(length, 20 * MIB + offset) == data, f"{length} bytes at +{offset} differ")
    check(h.pread(1, 20 * MIB) == b"x", "a byte write touched the byte before")
h.flush()

# Sixty-four writes in flight, answered in any order, then as many reads.
base, step, inflight = 24 * MIB, 12288, 64
blocks = [rnd.randbytes(step) for _ in range(inflight)]
cookies = [h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b)), base + i * step)
           for i, b in enumerate(blocks)]
while cookies:
    h.poll(-1)
    cookies = [c for c in cookies if not h.aio_command_completed(c)]
buffers = [nbd.Buffer(step) for _ in range(inflight)]
cookies = [h.aio_pread(b, base + i * step) for i, b in enumerate(buffers)]
while cookies:
    h.poll(-1)
    cookies = [c for c in cookies if not h.aio_command_completed(c)]
for i, b in enumerate(buffers):
    check(bytes(b.to_bytearray()) == blocks[i], f"request {i} of {inflight} in flight differs")

# Zero and trim: the range reads as zeros, the neighbours stay, and the map shows it.
area = 32 * MIB
h.pwrite(rnd.randbytes(4 * MIB), area)
edge = h.pread(4096, area), h.pread(4096, area + 3 * MIB)
h.zero(MIB, area + MIB)
check(h.pread(MIB, area + MIB) == bytes(MIB), "zeroed range is not zero")
h.zero(1536, area + 4096 + 512, nbd.CMD_FLAG_NO_HOLE)
check(h.pread(1536, area + 4096 + 512) == bytes(1536), "unaligned zero is not zero")
h.trim(MIB, area + 2 * MIB, nbd.CMD_FLAG_FUA)
check(h.pread(MIB, area + 2 * MIB) == bytes(MIB), "trimmed range is not zero")
check((h.pread(4096, area), h.pread(4096, area + 3 * MIB)) == edge, "zero or trim went too far")


def extents(length, offset):
    """The allocation map of a range as (length, flags) pairs."""
    out = []

    def got(context, start, entries, err):
        check(context == nbd.CONTEXT_BASE_ALLOCATION, f"context {context}")
        out.extend(zip(entries[::2], entries[1::2]))

    h.block_status(length, offset, got)
    check(out and all(e[0] > 0 for e in out), f"block status {out}")
    return out


first = extents(MIB, area + 2 * MIB)[0]
check(first[1] & nbd.STATE_ZERO, f"trimmed range does not show as zero: {first}")
first = extents(4096, area + 3 * MIB)[0]
check(not first[1] & (nbd.STATE_ZERO | nbd.STATE_HOLE), f"written range shows as hole: {first}")
total = at = 0
while at < size:
    at += sum(e[0] for e in extents(min(size - at, 1 << 30), at))
check(at >= size, "the map does not cover the volume")

# Nonsense the library would refuse by itself: the server must answer, and live.
h.set_strict_mode(0)
refused([errno.EINVAL], "read past the end", lambda: h.pread(4096, size))
refused([errno.EINVAL], "read across the end", lambda: h.pread(8192, size - 4096))
refused([errno.ENOSPC, errno.EINVAL], "write past the end", lambda: h.pwrite(b"x" * 4096, size))
refused([errno.ENOSPC, errno.EINVAL], "write across the end",
        lambda: h.pwrite(b"x" * 8192, size - 4096))
refused([errno.EINVAL, errno.ENOSPC], "trim past the end", lambda: h.trim(4096, size))
refused([errno.ENOSPC, errno.EINVAL], "zero past the end", lambda: h.zero(4096, size))
refused([errno.EINVAL, errno.ENOSPC], "offset near 2^64",
        lambda: h.pwrite(b"x" * 4096, (1 << 63) - 4096))
refused([errno.EINVAL], "unknown flag", lambda: h.pread(4096, 0, 1 << 9))
check(h.pread(inflight * step, base) == b"".join(blocks), "data changed by refused requests")
h.shutdown()
print(f"{checks} checks hold")
