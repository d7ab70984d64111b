"""What dropout before a linear model costs and gains, in closed form, for inputs x ~ N(0, I_p).

"Dropout Drops Double Descent" (arXiv 2305.16179): with the right rate the excess risk falls monotonically in the number
of rows n, where least squares has a peak at n = p. With signal r2 = ||w*||^2, noise variance s2 of the targets, g = p/n
and a = q / (1 - q) the penalty of rate q, the excess risk E ||w - w*||^2 is

    least squares     s2 p / (n - p - 1)  for n > p + 1;   r2 (1 - n/p) + s2 n / (p - n - 1)  for n < p - 1
    dropout, n, p large   r2 a^2 m1 + s2 g (m - a m1),   m = (sqrt((1 - g + a)^2 + 4 g a) - (1 - g + a)) / (2 g a),
                          m1 = -dm/da  (m is the Stieltjes transform of the Marchenko-Pastur law at -a)
    best penalty      a* = p s2 / (n r2)

These ignore that the columns' norms fluctuate around n; at small n the measured optimum lies a little higher.
"""

import math

from mickle.errors import UsageError
from mickle.regression.ridge import penalty


def least_squares_risk(rows: int, columns: int, signal: float, noise: float) -> float:
    """Excess risk of minimum-norm least squares (no dropout); infinite where |n - p| <= 1."""
    if rows > columns + 1:
        return noise * columns / (rows - columns - 1)
    if rows < columns - 1:
        return signal * (1 - rows / columns) + noise * rows / (columns - rows - 1)
    return math.inf


def dropout_risk(rows: int, columns: int, signal: float, noise: float, rate: float) -> float:
    """Excess risk with dropout, in the limit of large n and p; at rate 0 that of least squares."""
    a, g = penalty(rate), columns / rows
    if a == 0:
        return least_squares_risk(rows, columns, signal, noise)
    b = 1 - g + a
    root = math.sqrt(b * b + 4 * g * a)
    # The difference of two close numbers where b > 0: written as a quotient.
    m = 2 / (root + b) if b > 0 else (root - b) / (2 * g * a)
    # g a m^2 + b m - 1 = 0, differentiated in a.
    slope = -(g * m * m + m) / (2 * g * a * m + b)
    return signal * a * a * -slope + noise * g * (m + a * slope)


def best_rate(rows: int, columns: int, signal: float, noise: float) -> float:
    """The rate of least asymptotic risk, q* = p s2 / (n r2 + p s2)."""
    if signal <= 0 or noise < 0:
        raise UsageError("the best rate needs a positive signal and a noise that is not negative")
    return columns * noise / (rows * signal + columns * noise)
