"""Files with something wrong in them, for the tests that read thousands of them."""

import random
from collections.abc import Sequence


def mutated(content: bytes, draw: random.Random, pieces: Sequence[bytes], most: int = 7, longest: int = 399) -> bytes:
    """``content`` with one to ``most`` changes: a byte replaced, up to ``longest`` bytes cut, doubled or moved, random
    ones or one of ``pieces`` put in, now and then a thousand times.
    """
    data = bytearray(content)
    for _ in range(draw.randint(1, most)):
        place, size = draw.randrange(len(data) + 1), draw.randint(1, longest)
        match draw.randrange(6):
            case 0:
                data[place : place + 1] = bytes([draw.randrange(256)])
            case 1:
                del data[place : place + size]
            case 2:
                data[place:place] = data[place : place + size]
            case 3:
                other = draw.randrange(len(data) + 1)
                data[place:place] = data[other : other + size]
            case 4:
                data[place:place] = draw.randbytes(draw.randrange(1, 50))
            case 5:
                data[place:place] = draw.choice(pieces) * draw.choice([1, 1, 1, 1000])
        data = data or bytearray(b"x")
    return bytes(data)
