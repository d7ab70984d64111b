"""The sizes that kernels of grouped matrices share."""

STRIP = 16  # rows side by side in a register of 512 bits; the height of a tile of SpQR's second level
CHUNK = 32  # columns whose codes of b bits fill b whole words of 32 bits
LARGEST_HALF = 65504.0  # of the numbers that 16 bits hold


def places(bits: int) -> list[list[tuple[int, int, int, int]]]:
    """Where the codes of each quad of columns stand: pieces (word, shift in each byte, first bit of the code, mask)."""
    mask = 2**bits - 1
    if bits == 3:
        whole = [[(quad // 2, 3 * (quad % 2), 0, mask)] for quad in range(6)]
        return [*whole, [(0, 6, 0, 3), (1, 6, 2, 1)], [(1, 7, 0, 1), (2, 6, 1, 3)]]
    a_byte = 8 // bits
    return [[(quad // a_byte, quad % a_byte * bits, 0, mask)] for quad in range(CHUNK // 4)]
